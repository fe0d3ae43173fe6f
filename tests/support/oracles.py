"""Naive float64 NumPy versions of losses, optimizers and neighbours, written from their formulas, one loop per sum."""

import numpy as np


def info_nce(q, k, queue, temperature):
    """MoCo, equation 1: -log( e^{q.k+} / (e^{q.k+} + sum over the queue) ), the batch's mean."""
    losses = []
    for query, key in zip(q, k):
        positive = np.exp(query @ key / temperature)
        losses.append(-np.log(positive / (positive + sum(np.exp(query @ row / temperature) for row in queue))))
    return np.mean(losses)


def queue_candidates(i, k, queue, labels, key_labels, queue_labels, first_key):
    """(feature, whether positive) of each candidate of anchor i for In and Out."""
    found = []
    for j, key in enumerate(k):
        found.append((key, j == first_key + i or (labels[i] >= 0 and key_labels[j] == labels[i])))
    for row, label in zip(queue, queue_labels):
        found.append((row, labels[i] >= 0 and label == labels[i]))
    return found


def supcon_in(q, k, queue, labels, key_labels, queue_labels, temperature, first_key=0):
    """SupCon, equation 3."""
    losses = []
    for i, anchor in enumerate(q):
        candidates = queue_candidates(i, k, queue, labels, key_labels, queue_labels, first_key)
        total = sum(np.exp(anchor @ c / temperature) for c, _ in candidates)
        positives = [np.exp(anchor @ c / temperature) for c, positive in candidates if positive]
        losses.append(-np.log(sum(p / total for p in positives) / len(positives)))
    return np.mean(losses)


def supcon_out(q, k, queue, labels, key_labels, queue_labels, temperature, first_key=0):
    """SupCon, equation 2, with the public code's 1e-5 beside |P|."""
    losses = []
    for i, anchor in enumerate(q):
        candidates = queue_candidates(i, k, queue, labels, key_labels, queue_labels, first_key)
        total = sum(np.exp(anchor @ c / temperature) for c, _ in candidates)
        logs = [np.log(np.exp(anchor @ c / temperature) / total) for c, positive in candidates if positive]
        losses.append(-sum(logs) / (len(logs) + 1e-5))
    return np.mean(losses)


def supcon_suploss(q, k, queue, labels, queue_labels, temperature):
    """Equation 2 with the other queries, the keys and the queue as candidates."""
    losses = []
    for i, anchor in enumerate(q):
        same = [labels[i] >= 0 and label == labels[i] for label in labels]
        candidates = [(q[j], same[j]) for j in range(len(q)) if j != i]
        candidates += [(k[j], same[j] or j == i) for j in range(len(k))]
        candidates += [(row, labels[i] >= 0 and label == labels[i]) for row, label in zip(queue, queue_labels)]
        total = sum(np.exp(anchor @ c / temperature) for c, _ in candidates)
        logs = [np.log(np.exp(anchor @ c / temperature) / total) for c, positive in candidates if positive]
        losses.append(-np.mean(logs))
    return np.mean(losses)


def supcon_batch(features, labels=None, temperature=0.07, contrast_mode="all"):
    """Equation 2 within a batch of BxVxC; without labels each image is a class of its own."""
    batch, views, _ = features.shape
    labels = range(batch) if labels is None else labels
    losses = []
    for i, v in np.ndindex(batch, views if contrast_mode == "all" else 1):
        others = [(j, u) for j, u in np.ndindex(batch, views) if (j, u) != (i, v)]
        e = {ju: np.exp(features[i, v] @ features[ju] / temperature) for ju in others}
        positives = [(j, u) for j, u in others if j == i or (labels[i] >= 0 and labels[j] == labels[i])]
        losses.append(-np.mean([np.log(e[p] / sum(e.values())) for p in positives]))
    return np.mean(losses)


def nce(features, bank_rows, temperature, z, num_examples):
    """NPID, equation 7: one own row, then M noise rows, with noise probability 1/n."""
    total = 0.0
    for v, rows in zip(features, bank_rows):
        p = [np.exp(v @ row / temperature) / z for row in rows]
        noise = (len(rows) - 1) / num_examples
        total -= np.log(p[0] / (p[0] + noise)) + sum(np.log(noise / (each + noise)) for each in p[1:])
    return total / len(features)


def numerical_gradient(f, x, epsilon=1e-5):
    """Central differences of a scalar function."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[index] = epsilon
        gradient[index] = (f(x + step) - f(x - step)) / (2 * epsilon)
    return gradient


def sgd(weights, gradients, rates, momentum=0.0, weight_decay=0.0, nesterov=False):
    """One variable's values after each step of torch.optim.SGD."""
    w, velocity, trajectory = weights.astype(np.float64), np.zeros(weights.shape), []
    for g, rate in zip(gradients, rates):
        g = g + weight_decay * w
        velocity = momentum * velocity + g
        w = w - rate * (g + momentum * velocity if nesterov else velocity)
        trajectory.append(w)
    return np.stack(trajectory)


def adam(weights, gradients, rates, beta_1=0.9, beta_2=0.999, epsilon=1e-8, weight_decay=0.0):
    """Kingma and Ba, algorithm 1, with L2 in the gradient."""
    w, m, v, trajectory = weights.astype(np.float64), 0.0, 0.0, []
    for t, (g, rate) in enumerate(zip(gradients, rates), start=1):
        g = g + weight_decay * w
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        w = w - rate * (m / (1 - beta_1**t)) / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
        trajectory.append(w)
    return np.stack(trajectory)


def lars(weights, gradients, rates, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001):
    """You et al., algorithm 1, as contrastive methods use it: vectors take part in neither decay nor scaling."""
    w, velocity, trajectory = weights.astype(np.float64), np.zeros(weights.shape), []
    for g, rate in zip(gradients, rates):
        if w.ndim > 1:
            g = g + weight_decay * w
            w_norm, g_norm = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
            if w_norm > 0 and g_norm > 0:
                g = g * trust_coefficient * w_norm / g_norm
        velocity = momentum * velocity + g
        w = w - rate * velocity
        trajectory.append(w)
    return np.stack(trajectory)


def knn(bank, bank_labels, queries, num_classes, k, temperature=None):
    """Classes by summed weight of the k nearest rows, exp(s / temperature), or 1 without a temperature."""
    ranked = []
    for query in queries:
        similarity = [float(np.dot(query, row)) for row in bank]
        nearest = sorted(range(len(bank)), key=lambda i: (-similarity[i], i))[:k]
        scores = [0.0] * num_classes
        for i in nearest:
            scores[bank_labels[i]] += 1.0 if temperature is None else np.exp(similarity[i] / temperature)
        ranked.append(sorted(range(num_classes), key=lambda c: (-scores[c], c)))
    return np.array(ranked)
