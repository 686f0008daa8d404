"""Naive forms: the same results as the modules', computed as simply as possible.

Each is named naive_… or after the library that computes it. They would give the answers
away, so a student's copy has another oracles.py, which looks up recorded numbers. Inputs
and results are numbers, in lists, arrays or tensors.
"""

import math

import numpy as np
import torch.nn.functional as F

# --- 3.1 The encoder ---

def torchs_attention(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, mask.bool()[:, None, None])


# --- 3.3.1 Gradient surgery ---

def naive_pcgrad(gradients, orders):
    """Yu et al.'s Algorithm 1 on vectors, as printed there.   [K, P] -> [K, P]"""
    treated = [g.copy() for g in gradients]
    for i, order in enumerate(orders):
        for j in order:
            dot = treated[i] @ gradients[j]
            if dot < 0:
                treated[i] -= dot / (gradients[j] @ gradients[j]) * gradients[j]
    return np.array(treated)


# --- 3.3.2 Gradient vaccine ---

def naive_gradvac(gradients, target, orders, beta):
    """Wang et al.'s update rule on vectors.   -> (treated [K, P], new target [K, K])"""
    treated, target = [g.copy() for g in gradients], np.array(target)
    for i, order in enumerate(orders):
        for j in order:
            a, b = np.linalg.norm(treated[i]), np.linalg.norm(gradients[j])
            phi, t = treated[i] @ gradients[j] / (a * b), target[i, j]
            if phi < t:
                s = math.sqrt(1 - t * t)
                w = a * (t * math.sqrt(1 - phi * phi) - phi * s) / (b * s)
                treated[i] = treated[i] + w * gradients[j]
            target[i, j] = (1 - beta) * t + beta * phi
    return np.array(treated), target


# --- 3.4 Comparison contextual embeddings ---

def naive_truncate_pair(a, b, budget):
    """Drop one token at a time from the longer side, from b on a tie."""
    while a + b > budget:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    return a, b


# --- 3.5 SMART ---

def naive_symmetric_kl(a, b):
    p, q = a.softmax(-1), b.softmax(-1)
    return ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)).mean()


# --- 4.2 Evaluation ---

def numpys_pearson(x, y):
    return np.corrcoef(x, y)[0, 1]
