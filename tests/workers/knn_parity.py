"""One rank that classifies the cases of knn.npz with its share of the bank. usage: knn_parity.py CASES.npz"""

import sys

import numpy as np

from moco_tf.evaluation import neighbours
from moco_tf.training import collectives

case, ranks = np.load(sys.argv[1]), collectives.connect()
rows = np.arange(ranks.rank, len(case["bank"]), ranks.size)
for k, temperature in [(200, 0.1), (20, 0.07), (1, 0.1)]:
    for chunk, query_chunk in [(65536, 1024), (37, 70)]:
        ranked = neighbours.classify(
            *(case["bank"][rows], case["bank_labels"][rows], case["queries"], int(case["classes"]), k, temperature),
            chunk=chunk,
            query_chunk=query_chunk,
            rows=rows,
            collectives=ranks,
        )
        np.testing.assert_array_equal(ranked, case[f"ranked_labels_k{k}_t{temperature}"])
        found = neighbours.accuracy(ranked, case["query_labels"])
        assert found == (case[f"top1_k{k}_t{temperature}"], case[f"top5_k{k}_t{temperature}"])
# A bank with fewer rows on a rank than neighbours, and with equal rows on different ranks.
bank = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
rows = np.arange(ranks.rank, 12, ranks.size)
queries = np.array([[0.8, 0.6, 0.0, 0.0], [0.0, 0.0, 0.6, 0.8]], np.float32)
similarities, labels = neighbours.nearest_labels(bank[rows], rows, queries, 7, rows=rows, collectives=ranks)
assert labels.tolist() == [[0, 1, 2, 3, 4, 5, 6], [9, 10, 11, 6, 7, 8, 0]]
np.testing.assert_allclose(similarities[0], [0.8] * 3 + [0.6] * 3 + [0.0], atol=1e-8)
print("equal", flush=True)
