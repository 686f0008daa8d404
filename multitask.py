"""Many tasks, one model: in which order they take turns, and how their gradients meet.

    3.2     sequential(): Algorithm 1
    3.3     round_robin(): Algorithm 2;  plan(): all epochs, 3.5.1's paraphrase-first too
    3.3.1   pcgrad(): gradient surgery
    3.3.2   GradVac: gradient vaccine;  backward(): accumulation to a virtual batch
    3.3     treat(), describe(), regions(): from task gradients to one update

Symbols: K tasks, k of them in this step, g_k the gradient of task k's loss on the shared
parameters; θ is cut into R regions, of which the shared ones form L groups that are treated
each by itself (1: all together); φ_ij = cos(g_i', g_j), φᵀ_ij its target, β the rate at
which the target follows.

Every treatment only adds multiples of task gradients to each other. So a treated gradient
is g_i' = Σ_k C_ik g_k, and all it takes to find C is the Gram matrix, gram_ij = g_i · g_j.
A treatment is therefore a function from one K × K matrix to another, exact in float64, for
any number of parameters; and whatever one would log about it follows from these two.

D3: 3.3.1 projects on "the normal plane of the gradient vector sum". The equation and its
source project on the other task's gradient, and only if the two conflict, g_i · g_j < 0.
D4: The vaccine's equation is garbled in 3.3.2; see GradVac.
D2: Algorithm 2 adds losses before backward(). Both treatments need each task's gradient.
D5: 3.3.2 accumulates by "summing the batches' gradients". For 16 × 2 to be 32 it must be
their mean.
Leaves out: treatments that need more than the Gram matrix, tasks that share no parameters.
"""

import itertools

import numpy as np
import torch


# --- 3.2 Sequential multi-task fine-tuning ---

def sequential(steps):
    """Algorithm 1: all of SST, then all of STS, then all of paraphrase; one task a step.

    steps: {task: number of steps}, in the order of their turns -> [(task,), …], an epoch
    """
    return [(task,) for task, number in steps.items() for _ in range(number)]


# --- 3.3 Round robin ---

def round_robin(steps, aligned):
    """Algorithm 2: each step takes a batch of each task, as often as `aligned` has batches.

    {"sst": 534, "para": 1000, "sts": 377}, "sts" -> 377 × ("sst", "para", "sts")
    """
    return [tuple(steps)] * steps[aligned]


def plan(batches, in_sequence, epochs, accumulate=1, aligned=None, para_first=0):
    """The tasks of each step.   [report 3.2, 3.3, 3.5.1]   -> [[(task, …), …], …], by epoch

    batches: {task: batches in its set}; in_sequence: Algorithm 1 instead of 2; accumulate:
    batches of a task to one step; aligned: the task whose set makes an epoch, by default
    STS, or the smallest. {"para": 5} with accumulate 2: 2 steps, then 3, then 2, …
    """
    aligned = aligned or ("sts" if "sts" in batches else min(batches, key=batches.get))

    def steps(epoch, tasks):
        # D18: batches that don't fill a step at an epoch's end are carried into the next.
        return {task: (epoch + 1) * batches[task] // accumulate
                - epoch * batches[task] // accumulate for task in tasks}

    # 3.5.1: epochs "on just the paraphrase task before the rest of the tasks". D8: the
    # report has no row that differs in this alone, so its worth cannot be read from it.
    epochs_first = [sequential(steps(epoch, ["para"])) for epoch in range(para_first)]
    if in_sequence:         # in the order of Algorithm 1: SST, STS, paraphrase
        turns = [task for task in ("sst", "sts", "para") if task in batches]
        return epochs_first + [sequential(steps(epoch, turns)) for epoch in range(epochs)]
    return epochs_first + [round_robin(steps(epoch, batches), aligned)
                           for epoch in range(epochs)]


# --- 3.3.1 Gradient surgery ---

def check_gram(gram):
    gram = np.asarray(gram, np.float64)
    if gram.ndim < 2 or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"gram must be [..., K, K], got {list(gram.shape)}")
    return gram


def draw_orders(K, rng):
    """For each task i a random order of the others, the same for all blocks."""
    return [[j for j in rng.permutation(K).tolist() if j != i] for i in range(K)]


def pcgrad(gram, orders=None, rng=None):
    """Remove from each gradient what points against another's.   [report 3.3.1; Yu et al.
    2020, Algorithm 1]

        g_i' ← g_i' - (g_i' · g_j / ‖g_j‖²) g_j    if g_i' · g_j < 0,  for all j ≠ i in turn

    gram [..., K, K] float64 -> C, the same shape: g_i' = Σ_k C_ik g_k. The update is the
    sum of all g_i', so its coefficients are C.sum(-2). orders[i] lists the tasks that i
    visits; without it they are drawn from rng, a numpy Generator. Raises ValueError if gram
    is not square. By hand: g1 = (1, 0), g2 = (-1, 1): g1 · g2 = -1, so
    g1' = g1 + g2/2 = (½, ½), g2' = g2 + g1 = (0, 1), the sum (½, 1½).
    """
    gram = check_gram(gram)
    K = gram.shape[-1]
    orders = draw_orders(K, rng) if orders is None else orders
    C = np.broadcast_to(np.eye(K), gram.shape).copy()
    for i in range(K):
        # Trap: not j = i. For three tasks and more the own dot product can turn negative
        # under way, and the task would then be projected on itself.
        for j in orders[i]:
            # The running g_i', but the ORIGINAL g_j: projecting on gradients that were
            # already projected makes the result depend on who came first.
            dot = (C[..., i, :] * gram[..., :, j]).sum(-1)              # g_i' · g_j   [...]
            norm2 = gram[..., j, j]
            conflict = (dot < 0) & (norm2 > 0)      # a zero gradient has no normal plane
            C[..., i, j] -= np.where(conflict, dot, 0) / np.where(conflict, norm2, 1)
    return C


# --- 3.3.2 Gradient vaccine ---

class GradVac:
    """Tilt each gradient until its angle to another is the usual one.   [report 3.3.2; Wang
    et al. 2020]

        g_i' ← g_i' + w g_j     if φ = cos(g_i', g_j) < φᵀ_ij,  for all j ≠ i in turn
        w = ‖g_i'‖ (φᵀ √(1 - φ²) - φ √(1 - φᵀ²)) / (‖g_j‖ √(1 - φᵀ²))        then cos = φᵀ
        φᵀ_ij ← (1 - β) φᵀ_ij + β φ                                          always

    φᵀ starts at 0, so the first step is PCGrad. gv(gram) -> C as pcgrad(); gv.target has
    the shape of gram and belongs in a checkpoint. Raises ValueError for β outside [0, 1].
    By hand: g_i = (3, 4), g_j = (-2, 0), φᵀ = ½. φ = -.6, and w = 2.6547 gives
    g_i' = (-2.309, 4), whose cosine with g_j is ½.

    D4: The report prints w = ‖g_i‖/‖g_j‖ (φᵀ - φ² - φ √(1 - φᵀ²)): a root is missing over
    the second term and the denominator's √(1 - φᵀ²). With it the example's cosine is .074.
    """

    CLAMP = 0.999       # |φᵀ| where it is used: at 1 the tilt is infinitely long

    def __init__(self, beta=0.01):
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        self.beta, self.target = beta, None

    def __call__(self, gram, orders=None, rng=None):
        gram = check_gram(gram)
        K = gram.shape[-1]
        orders = draw_orders(K, rng) if orders is None else orders
        if self.target is None:
            self.target = np.zeros(gram.shape)
        C = np.broadcast_to(np.eye(K), gram.shape).copy()
        for i in range(K):
            dots = gram[..., i, :].copy()           # g_i' · g_k for all k        [..., K]
            norm2 = gram[..., i, i].copy()          # ‖g_i'‖²                     [...]
            for j in orders[i]:
                b, d = gram[..., j, j], dots[..., j].copy()
                alive = (norm2 > 0) & (b > 0)       # an angle needs two vectors
                b = np.where(alive, b, 1)
                # Trap: clip. Rounding makes cosines of 1.0000000002, the root below NaN,
                # and a NaN in the target never leaves it.
                phi = np.clip(d / np.sqrt(np.where(alive, norm2, 1) * b), -1, 1)
                target = np.clip(self.target[..., i, j], -self.CLAMP, self.CLAMP)
                # The same w, read as "project g_i on the normal plane of g_j, which leaves
                # length r, then tilt back": exact also where φ is near -1.
                r = np.sqrt(np.maximum(0, norm2 - d * d / b))
                w = target / np.sqrt(1 - target ** 2) * r / np.sqrt(b) - d / b
                w = np.where(alive & (phi < target), w, 0)
                C[..., i, j] += w
                dots += w[..., None] * gram[..., :, j]
                norm2 = np.maximum(0, norm2 + 2 * w * d + w * w * b)
                # Trap: always, with the φ before the tilt. Updated only where φ < φᵀ the
                # target can do nothing but fall, and the vaccine soon never acts.
                moved = (1 - self.beta) * self.target[..., i, j] + self.beta * phi
                self.target[..., i, j] = np.where(alive, moved, self.target[..., i, j])
        return C


def plain_sum(gram, orders=None, rng=None):
    """No treatment, g_i' = g_i: the update is the sum of task gradients.   [Algorithm 2]"""
    gram = check_gram(gram)
    return np.broadcast_to(np.eye(gram.shape[-1]), gram.shape).copy()


# --- 3.3 One optimizer step ---

def backward(flat, micro_batches, loss_fn, rows):
    """Each task's gradient, mean of the virtual batch, into its row of G.   [report 3.3.2]

    micro_batches: a list, one entry for each accumulated batch, of {task: batch};
    loss_fn(task, batch) -> (scalar loss, {name: scalar to be logged});
    rows: {task: row of G}. Returns {"loss_sst": mean over the micro-batches, …}.
    """
    for row in set(rows.values()):
        flat.G[row].zero_()
    logs = {}
    for batches in micro_batches:
        for task, batch in batches.items():
            flat.attach(rows[task])
            loss, log = loss_fn(task, batch)
            # D5: the mean over the virtual batch. The treatments are not linear, so they
            # come after the last micro-batch.
            (loss / len(micro_batches)).backward()
            for name, value in log.items():
                logs.setdefault(f"{name}_{task}", []).append(value)
    # One copy from the device for all of them: each would wait for the whole queue of work.
    means = torch.stack([torch.stack(values).mean() for values in logs.values()])
    return dict(zip(logs, means.tolist()))


def treat(flat, regions, rows, treatment, clip, rng):
    """Task gradients G -> the update's gradient, in G[0]; then hand it to the optimizer.

    regions: [(slice of θ, block, group)]: shared slices with equal group are treated as one
    vector; group None is a head, which belongs to one task: its gradient passes unchanged.
    Trap: with heads inside the vectors ‖g_j‖² counts numbers that g_i doesn't have, so the
    projection falls short, and adding g_j to g_i moves the head of task j.
    rows: indices of this step's task gradients. clip: largest norm of the update, or 0.
    Returns {"grams" [R, k, k], "gram" [L, k, k], "C" [L, k, k], "target": the vaccine's, or
    None, "norm"}; None if some number is not finite, and then no state was touched.
    """
    slices, present = [here for here, _, _ in regions], slice(rows[0], rows[-1] + 1)
    # Rows of tasks that take no part in this step hold an old step's numbers.
    grams = flat.gram(slices, present)                                          # [R, k, k]
    squares = np.diagonal(grams, axis1=-2, axis2=-1)                            # [R, k]
    if not np.isfinite(squares).all():
        return None
    groups = [group for _, _, group in regions]
    L = 1 + max((group for group in groups if group is not None), default=-1)
    gram = np.zeros((L, len(rows), len(rows)))
    for one, group in zip(grams, groups):
        if group is not None:
            gram[group] += one
    # One task alone has nothing to be treated against; its pairs keep their state.
    C = (treatment if len(rows) > 1 else plain_sum)(gram, rng=rng)              # [L, k, k]

    factors = np.array([np.ones(len(rows)) if group is None else C[group].sum(-2)
                        for group in groups])                                   # [R, k]
    # ‖Σ_k c_k g_k‖² = c gram cᵀ, so the norm to be clipped costs no pass over P numbers.
    norm = np.sqrt(max(0.0, np.einsum("ri,rij,rj->", factors, grams, factors)))
    flat.combine(factors * (clip / norm if clip and norm > clip else 1), slices, present)

    # A block whose gradient is 0 throughout took no part in the step: its gradient is None.
    used = {block for (_, block, _), square in zip(regions, squares) if square.sum() > 0}
    flat.give_gradients([flat.blocks[block] for block in used])
    return {"grams": grams, "gram": gram, "C": C, "norm": norm,
            "target": getattr(treatment, "target", None)}


def cosines(gram):
    """g_i · g_j / (‖g_i‖ ‖g_j‖) for all i, j; 0 if a gradient is.   [K, K] -> [K, K]"""
    # Trap: where surgery has left nothing of a gradient, rounding may leave a norm² of
    # -1e-20, and a quotient of two such remnants can be anything.
    norms = np.sqrt(np.maximum(0, np.diagonal(gram)))
    return np.clip(gram / np.maximum(np.outer(norms, norms), 1e-300), -1, 1)


def describe(treated, names, regions=None):
    """What gram and C say of a step, for the log.   treat()'s result -> {name: number}

    norm_a = ‖g_a‖; cos_a_b between g_a and g_b, treated_cos_a_b between g_a' and g_b';
    coefficient_a, the factor with which g_a enters the update; acted_a_b, the share of
    groups in which g_a got some of g_b, acted its mean over all ordered pairs; target_a_b,
    φᵀ, mean over groups. With treat()'s regions also layers: {block: {cos_a_b}}.
    """
    if treated is None:
        return {"skipped": 1}
    log = {"grad_norm": float(treated["norm"])}
    gram, C, K = treated["gram"], treated["C"], len(names)
    if gram.shape[-1] < K or K == 1:    # one row for the sum of all tasks, or a single task
        return log
    log.update(zip((f"norm_{a}" for a in names),
                   np.sqrt(np.diagonal(gram.sum(0))).tolist()))
    log.update(zip((f"coefficient_{a}" for a in names), C.sum(-2).mean(0).tolist()))
    pairs = list(itertools.combinations(range(K), 2))

    def add(log, name, matrix, pairs):
        log.update({f"{name}_{names[i]}_{names[j]}": float(matrix[i, j]) for i, j in pairs})
    add(log, "cos", cosines(gram.sum(0)), pairs)
    # g_i' · g_j' = Σ_kl C_ik C_jl g_k · g_l: what is left of the conflict costs no pass
    # over the gradients either.
    add(log, "treated_cos", cosines((C @ gram @ C.swapaxes(-1, -2)).sum(0)), pairs)
    ordered = list(itertools.permutations(range(K), 2))
    acted = (C != 0).mean(0)
    log["acted"] = float(np.mean([acted[pair] for pair in ordered]))
    add(log, "acted", acted, ordered)
    if treated["target"] is not None:
        add(log, "target", treated["target"].mean(0), ordered)
    if regions:
        sums = {}
        for (_, block, group), one in zip(regions, treated["grams"]):
            if group is not None:
                sums[block] = sums.get(block, 0) + one
        log["layers"] = {block: {} for block in sums}
        for block, one in sums.items():
            add(log["layers"][block], "cos", cosines(one).round(4), pairs)
    return log


def regions(flat, granularity):
    """How to cut θ for treat().   "model" | "layer" | "matrix" -> [(slice, block, group)]

    "model" treats all shared parameters as one vector, as the report does; "layer" each
    block, "matrix" each tensor by itself [Wang et al. 2020, sec. 3.2]. Tensors of fewer
    than 64 numbers join their block's largest: the cosine of two numbers is always 1 or -1.
    """
    cut, numbers = [], itertools.count()
    for block, here in flat.blocks.items():
        if block.startswith("head "):
            cut.append((here, block, None))
        elif granularity == "matrix":
            names = flat.matrices[block]
            sizes = {name: flat.parameters[name].numel() for name in names}
            group = {name: next(numbers) for name in names if sizes[name] >= 64
                     or sizes[name] == max(sizes.values())}
            largest = group[max(group, key=sizes.get)]
            cut += [(flat.place[name], block, group.get(name, largest)) for name in names]
        else:
            cut.append((here, block, 0 if granularity == "model" else next(numbers)))
    return cut
