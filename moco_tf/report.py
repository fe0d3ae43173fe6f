"""Writes one self-contained HTML page about a run, or about several beside each other.

    python -m moco_tf.report --workdir=runs/v2
    python -m moco_tf.report --workdir=runs/moco,runs/simclr --output=comparison.html

The page asks for nothing over a network. Curves, table and recipe are of all runs, pictures of the first one. What
TensorBoard shows besides curves (sample views, the embedding projector) goes to the first one's tensorboard/report/.
"""

import pathlib

from moco_tf.config import extras
from moco_tf.config.options import Report
from moco_tf.errors import UserError
from moco_tf.run import program


def main(options: Report) -> None:
    """Writes the report of --workdir."""
    extras.need("moco_tf.report", extras.REPORT, "report")
    from moco_tf.reporting import board, page, results, sections
    from moco_tf.run.examine import examine
    from moco_tf.training import device, gpu
    from moco_tf.training.collectives import SingleProcess

    o = options.report
    records = results.read_all(o.workdir or ())
    output = pathlib.Path(o.output or records[0].folder.report)
    page.check_output(output)
    for complaint in (complaint for record in records for complaint in record.complaints):
        print(f"note: {complaint}", flush=True)
    device.configure(0, 1)
    gpu.check(SingleProcess())
    examination = examine(records, o) if o.images else None
    drawn = sections.the_map(examination.first, o.map_images) if examination else None
    if examination and drawn:
        board.write(records[0], examination, drawn)
    made = sections.of_files(records)
    sections.add_images(made, records, examination, drawn)
    size = page.write(output, page.render(made))
    print(f"written to {output} ({size / 1e6:.1f} MB)", flush=True)
    if examination and examination.empty():
        raise UserError(
            f"{output} has no pictures: {examination.views}; give --data_dir, where the images are, or --noimages"
        )


if __name__ == "__main__":
    program.run(main, Report)
