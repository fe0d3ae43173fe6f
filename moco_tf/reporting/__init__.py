"""The parts of the report page, see moco_tf/report.py."""
