"""Many tasks, one model: whose turn it is, and how task gradients become one update.

    3.2     sequential(): Algorithm 1
    3.3     round_robin(): Algorithm 2;  plan(): all epochs, 3.5.1's paraphrase-first too
    3.3.1   pcgrad(): gradient surgery
    3.3.2   GradVac: gradient vaccine;  backward(): accumulation to a virtual batch
    3.3     treat(): from task gradients to one update;  describe(): what it did

Symbols: K tasks; g_k the gradient of task k's loss (in shapes, k is how many tasks a step
has); R regions that θ is cut into, L units that are treated (see Region); φ_ij = cos(g_i',
g_j), φᵀ_ij the target of φ_ij (T for target, not a transpose), β how fast it follows.

A treatment (surgery or vaccine) only ever adds multiples of task gradients to each other.
So a treated gradient is g_i' = Σ_k C_ik g_k, and all it takes to find C is the Gram matrix,
gram_ij = g_i · g_j. A treatment is therefore a function from one K × K matrix to another,
in float64 for any number of parameters, and all that is logged follows from the two.

D2: Algorithm 2 adds losses before backward(). Both treatments need each task's gradient.
D3: 3.3.1 projects on "the normal plane of the gradient vector sum". The equation and its
source project out the other task's gradient, only if the two conflict, g_i · g_j < 0.
D4: The vaccine's equation is garbled in 3.3.2; see GradVac.
D5: 3.3.2 accumulates by "summing the batches' gradients". For 16 × 2 to equal 32 it must be
their mean.
Leaves out: treatments that need more than the Gram matrix and the losses.
"""

import dataclasses
import inspect
import itertools

import numpy as np
import torch

# --- 3.2 Sequential multi-task fine-tuning ---

def sequential(steps: dict) -> list:
    """Algorithm 1: all steps of the first task, then all of the second, …

    steps: {task: number of steps} in the order of their turns, which plan() sets: SST, STS,
    paraphrase -> [(task,), …], one epoch
    """
    return [(task,) for task, number in steps.items() for _ in range(number)]


# --- 3.3 Round robin ---

def round_robin(steps: dict, aligned: str) -> list:
    """Algorithm 2: each step takes a batch of every task, as often as `aligned` has steps.

    {"sst": 534, "para": 1000, "sts": 377}, "sts" -> 377 × ("sst", "para", "sts")
    """
    return [tuple(steps)] * steps[aligned]


def plan(batches: dict, in_sequence: bool, epochs: int, accumulate=1, aligned=None,
         para_first=0, max_steps=None) -> list:
    """The tasks of each step.   [report 3.2, 3.3, 3.5.1]   -> [[(task, …), …], …], by epoch

    batches: {task: batches in its set}; in_sequence: Algorithm 1 instead of 2; accumulate:
    batches of a task in one step; aligned: the task whose set makes an epoch, by default
    STS, or else the smallest; max_steps: where to stop. With {"para": 5} and accumulate 2,
    epochs have 2 steps, then 3, then 2, …
    """
    smallest = min(batches, key=lambda name: batches[name])
    aligned = aligned or ("sts" if "sts" in batches else smallest)

    def steps(epoch, tasks):
        # D18: batches that don't fill a step at an epoch's end are carried into the next.
        return {task: (epoch + 1) * batches[task] // accumulate
                - epoch * batches[task] // accumulate for task in tasks}

    def all_epochs():
        # 3.5.1: epochs "on just the paraphrase task before the rest of the tasks". D8: the
        # report has no row that differs in this alone, so its worth cannot be read from it.
        for epoch in range(para_first):
            yield sequential(steps(epoch, ["para"]))
        # Algorithm 1 goes through SST, then STS, then paraphrase; any other task follows.
        first = [task for task in ("sst", "sts", "para") if task in batches]
        turns = first + [task for task in batches if task not in first]
        for epoch in range(epochs):
            yield (sequential(steps(epoch, turns)) if in_sequence else
                   round_robin(steps(epoch, batches), aligned))

    planned, left = [], max_steps
    for epoch in all_epochs():
        planned.append(epoch[:left])
        if left is not None:
            left -= len(planned[-1])
            if left == 0:
                break
    return planned


# --- 3.3.1 Gradient surgery ---

def check_gram(gram) -> np.ndarray:
    """gram as a float64 array.   Raises ValueError unless it is [..., K, K] and finite"""
    gram = np.asarray(gram, np.float64)
    if gram.ndim < 2 or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"gram must be [..., K, K], got {list(gram.shape)}")
    if not np.isfinite(gram).all():     # it would spoil GradVac's targets for good
        raise ValueError("gram must be finite: skip a step whose gradients are not")
    return gram


def draw_orders(K, rng):
    """For each task i, a random order of the others; the same for all units."""
    if rng is None:
        raise ValueError("needed orders, or rng, a numpy Generator to draw them from")
    return [[j for j in rng.permutation(K).tolist() if j != i] for i in range(K)]


def plain_sum(gram, orders=None, rng=None) -> np.ndarray:
    """No treatment, g_i' = g_i: the update is ∇(𝓛_SST + 𝓛_Para + 𝓛_STS).   [Algorithm 2]

    gram [..., K, K] -> C, the identity, of the same shape.
    """
    gram = check_gram(gram)
    return np.broadcast_to(np.eye(gram.shape[-1]), gram.shape).copy()


def pcgrad(gram, orders=None, rng=None) -> np.ndarray:
    """Remove from each gradient what points against another's.   [report 3.3.1; Yu et al.
    2020, Algorithm 1]

        g_i' ← g_i' - (g_i' · g_j / ‖g_j‖²) g_j    if g_i' · g_j < 0,  for all j ≠ i in turn

    gram [..., K, K] -> C, float64, the same shape: g_i' = Σ_k C_ik g_k. The update is
    Σ_i g_i' = Σ_k (Σ_i C_ik) g_k, so the coefficient of g_k is the sum of column k:
    C.sum(-2). orders[i] lists the tasks that i visits; without it they are drawn from rng,
    a numpy Generator. Raises ValueError with neither, or if gram is not square or finite.
    By hand: g1 = (1, 0), g2 = (-1, 1), g1 · g2 = -1, so g1' = g1 + g2/2 = (½, ½),
    g2' = g2 + g1 = (0, 1), and their sum is (½, 1½).
    """
    gram = check_gram(gram)
    K = gram.shape[-1]
    orders = draw_orders(K, rng) if orders is None else orders
    C = plain_sum(gram)
    for i in range(K):
        # Trap: not j = i. With three tasks or more, g_i' · g_i can turn negative on the
        # way, and the task would then be projected on itself.
        for j in orders[i]:
            # The running g_i', but the ORIGINAL g_j: projecting on gradients that were
            # already projected would make the result depend on which task came first.
            dot = (C[..., i, :] * gram[..., :, j]).sum(-1)              # g_i' · g_j   [...]
            squared_norm = gram[..., j, j]                              # ‖g_j‖²       [...]
            conflict = (dot < 0) & (squared_norm > 0)   # a zero vector has no normal plane
            C[..., i, j] -= (np.where(conflict, dot, 0)
                             / np.where(conflict, squared_norm, 1))
    return C


# --- 3.3.2 Gradient vaccine ---

class GradVac:
    """Tilt each g_i until cos(g_i, g_j) reaches that pair's running average.   [report
    3.3.2; Wang et al. 2020]

        g_i' ← g_i' + w g_j     if φ = cos(g_i', g_j) < φᵀ_ij,  for all j ≠ i in turn
        w = ‖g_i'‖ (φᵀ √(1 - φ²) - φ √(1 - φᵀ²)) / (‖g_j‖ √(1 - φᵀ²))        then cos = φᵀ
        φᵀ_ij ← (1 - β) φᵀ_ij + β φ                                          always

    The code computes w as "project g_i' on the normal plane of g_j, then tilt back":
        r = ‖g_i'‖ √(1 - φ²)                   the length that the projection leaves
        w = φᵀ / √(1 - φᵀ²) · r / ‖g_j‖  -  (g_i' · g_j) / ‖g_j‖²

    φᵀ starts at 0, so the first step is PCGrad. gv(gram) -> C, as pcgrad(); gv.target has
    the shape of gram and belongs in a checkpoint. Raises ValueError for β outside [0, 1].
    By hand: g_i = (3, 4), g_j = (-2, 0), φᵀ = ½. φ = -.6, and w = 2.6547 gives
    g_i' = (-2.309, 4), whose cosine with g_j is ½.

    D4: The report prints w = ‖g_i‖/‖g_j‖ (φᵀ - φ² - φ √(1 - φᵀ²)): the product φᵀ √(1 - φ²)
    became φᵀ - φ², and the denominator √(1 - φᵀ²) is missing. As printed, the example's
    cosine is .074.
    """

    CLAMP = 0.999       # |φᵀ| where it is used: at 1 the tilt would be infinitely long

    def __init__(self, beta=0.01):
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        self.beta, self.target = beta, None

    def __call__(self, gram, orders=None, rng=None) -> np.ndarray:
        gram = check_gram(gram)
        K = gram.shape[-1]
        orders = draw_orders(K, rng) if orders is None else orders
        C = plain_sum(gram)
        if self.target is None:
            self.target = np.zeros(gram.shape)
        if self.target.shape != gram.shape:
            raise ValueError(f"targets are {list(self.target.shape)}, so gram must be, got "
                             f"{list(gram.shape)}; use another GradVac for other tasks")
        for i in range(K):
            dots = gram[..., i, :].copy()           # g_i' · g_k for all k        [..., K]
            squared_norm = gram[..., i, i].copy()   # ‖g_i'‖²                     [...]
            for j in orders[i]:
                alive = (squared_norm > 0) & (gram[..., j, j] > 0)  # neither may be 0
                norm_i = np.sqrt(np.where(alive, squared_norm, 1))              # ‖g_i'‖
                norm_j = np.sqrt(np.where(alive, gram[..., j, j], 1))           # ‖g_j‖
                along = dots[..., j] / norm_j       # length of g_i' along g_j
                # Trap: clip. Rounding makes cosines of 1.0000000002, the root below NaN,
                # and a NaN in the target never leaves it.
                phi = np.clip(along / norm_i, -1, 1)
                target = np.clip(self.target[..., i, j], -self.CLAMP, self.CLAMP)
                # floored at 0: rounding can leave a little less
                r = np.sqrt(np.maximum(0, squared_norm - along * along))
                w = (target / np.sqrt(1 - target ** 2) * r - along) / norm_j
                w = np.where(alive & (phi < target), w, 0)
                C[..., i, j] += w
                step = w * norm_j                   # how far g_i' moves along g_j
                squared_norm = np.maximum(0, squared_norm + 2 * step * along + step * step)
                dots += w[..., None] * gram[..., :, j]
                # Trap: always, with the φ before the tilt. If it were updated only where
                # φ < φᵀ, the target could only fall, and the vaccine would soon never act.
                moved = (1 - self.beta) * self.target[..., i, j] + self.beta * phi
                self.target[..., i, j] = np.where(alive, moved, self.target[..., i, j])
        return C


# --option -> what makes the treatment from the flags' values. To add one, add a line. A
# treatment takes gram [L, K, K] and, if its parameters name them, rng and losses [K]. It
# returns C [L, K, K], or weights [L, K] if its method yields one direction for all tasks.
TREATMENTS = {
    "pcgrad": lambda args: pcgrad,
    "gvac": lambda args: GradVac(args.vaccine_beta),
}


# --- 3.3 One optimizer step ---

def backward(flat, micro_batches: list, loss_fn, rows: dict, **more) -> dict:
    """Put each task's gradient, averaged over the virtual batch, into its row of G.
    [report 3.3.2]

    micro_batches: a list with one {task: batch} for each accumulated batch;
    loss_fn(task, batch, **more) -> (scalar loss, {name: scalar tensor to log}); rows:
    {task: row of G}, whose rows are emptied first. Returns {"loss_sst": mean over the
    micro-batches, a float, …}.
    """
    for row in set(rows.values()):
        flat.G[row].zero_()
    logs = {}
    for batches in micro_batches:
        for task, batch in batches.items():
            flat.attach(rows[task])
            loss, log = loss_fn(task, batch, **more)
            # D5: the mean over the virtual batch. The treatments are not linear, so they
            # come after the last micro-batch.
            (loss / len(micro_batches)).backward()
            for name, value in log.items():
                logs.setdefault(f"{name}_{task}", []).append(value)
    # One copy from the device for all of them: each would wait for the whole queue of work.
    means = torch.stack([torch.stack(values).mean() for values in logs.values()])
    return dict(zip(logs, means.tolist()))


@dataclasses.dataclass(frozen=True)
class Region:
    """A slice of θ whose inner products are computed at once.

    block: the name of the block that it lies in. unit: regions with the same number are
    treated together, as one vector; None for a head, which belongs to one task.
    """
    span: slice
    block: str
    unit: int | None


def regions(flat, granularity="model") -> list[Region]:
    """How θ is cut for treat().   granularity: "model" | "layer" | "matrix"

    "model" treats all shared parameters as one vector, as the report does; "layer" each
    block, "matrix" each tensor by itself [Wang et al. 2020, sec. 3.2]. Tensors of fewer
    than 64 numbers join their block's largest: the cosine of two single numbers is 1 or -1.
    Raises ValueError for another granularity.
    """
    if granularity not in ("model", "layer", "matrix"):
        raise ValueError(f"granularity must be 'model', 'layer' or 'matrix', got "
                         f"{granularity!r}")
    cut, count = [], itertools.count()
    for name, block in flat.blocks.items():
        trained = any(p.requires_grad for p in block.parameters.values())
        if not block.shared:
            cut.append(Region(block.span, name, None))
        elif not trained:       # --freeze: no gradient, so nothing to treat
            continue
        elif granularity == "model":
            cut.append(Region(block.span, name, 0))
        elif granularity == "layer":
            cut.append(Region(block.span, name, next(count)))
        else:
            sizes = {p_name: p.numel() for p_name, p in block.parameters.items()}
            largest = max(sizes, key=lambda name: sizes[name])
            spans = sorted((flat.place[p_name].start, p_name) for p_name in sizes)
            units = {p_name: next(count) for _, p_name in spans
                     if sizes[p_name] >= 64 or p_name == largest}
            cut += [Region(flat.place[p_name], name, units.get(p_name, units[largest]))
                    for _, p_name in spans]
    return cut


@dataclasses.dataclass
class Treated:
    """What treat() did, for describe(): k tasks, R regions, L units."""
    tasks: list                 # names of the k tasks; empty if tasks shared a row of G
    grams: np.ndarray           # [R, k, k] inner products on each region
    gram: np.ndarray            # [L, k, k] the same, added up by unit
    C: np.ndarray | None        # [L, k, k] g_i' = Σ_k C_ik g_k; None for mere weights
    weights: np.ndarray         # [L, k] coefficients of the update Σ_k w_k g_k
    target: np.ndarray | None   # [L, K, K] the vaccine's φᵀ
    norm: float                 # of the update's gradient, before clipping


def treat(flat, regions: list, rows: dict, treatment, clip=0.0, rng=None, losses=None,
          scale=1.0):
    """Task gradients G -> the update's gradient, in G[0], handed to the optimizer.

    regions: see regions(). rows: {task: row of G} for the tasks of this step. treatment:
    see TREATMENTS, such as pcgrad. clip: the largest norm of the update, or 0. losses: each
    task's own [k], in the order of the rows, for a treatment that asks for them. scale: the
    factor of all gradients in G (optim.LossScale). A step has one task, or all.
    Returns Treated, or None if some gradient is not finite (then no state was touched), or
    the treatment's result is not. Raises ValueError if that has a wrong shape.
    Trap: heads stay out. With them inside the vectors, ‖g_j‖² counts numbers that g_i
    doesn't have, so the projection falls short, and adding g_j to g_i moves task j's head.
    """
    # Rows of tasks that take no part in this step hold an old step's numbers.
    rows = dict(sorted(rows.items(), key=lambda item: item[1]))     # as the rows of gram
    present = sorted(set(rows.values()))
    spans, k = [region.span for region in regions], len(present)
    grams = flat.gram(spans, present) / scale ** 2                              # [R, k, k]
    squares = np.diagonal(grams, axis1=-2, axis2=-1)                            # [R, k]
    if not np.isfinite(squares).all():
        return None
    L = len({region.unit for region in regions if region.unit is not None})
    gram = np.zeros((L, k, k))
    for region, one in zip(regions, grams):
        if region.unit is not None:
            gram[region.unit] += one
    # One task alone has nothing to be treated against; its pairs keep their state.
    # The treatment gets a copy: what it changes in place must not reach the log.
    result = np.asarray(call_treatment(treatment if k > 1 else plain_sum, gram.copy(),
                                       rng=rng, losses=losses), np.float64)
    if result.shape not in (gram.shape, gram.shape[:-1]):
        raise ValueError(f"a treatment must return C {list(gram.shape)}, or weights "
                         f"{list(gram.shape[:-1])}; got {list(result.shape)}")
    # Trap: not (result > max).any(), which is False for NaN.
    if not (abs(result) < np.finfo(np.float32).max).all():
        return None
    C = result if result.shape == gram.shape else None
    weights = result if C is None else C.sum(-2)                                # [L, k]
    # A head's gradient passes through unchanged.
    factors = np.array([np.ones(k) if region.unit is None else weights[region.unit]
                        for region in regions])                                 # [R, k]

    # ‖Σ_k c_k g_k‖² = c gram cᵀ: the norm costs no pass over P numbers. Why clip the sum:
    # clipping each task's gradient would change how they weigh against each other.
    norm = np.sqrt(max(0.0, np.einsum("ri,rij,rj->", factors, grams, factors)))
    terms = np.einsum("ri,rij,rj->", abs(factors), abs(grams), abs(factors))
    if norm ** 2 > 1e-3 * terms:
        shrink = clip / norm if clip and norm > clip else 1
        flat.combine(factors * shrink / scale, spans, present)
    else:       # the gradients cancel, and what is left is below the Gram matrix's rounding
        flat.combine(factors / scale, spans, present)
        parts = flat.gram(spans, [0])
        norm = np.sqrt(parts.sum())
        if clip and norm > clip:
            flat.combine(np.full((len(spans), 1), clip / norm), spans, [0])

    # A block whose gradient is 0 throughout took no part in the step.
    flat.give_gradients({region.block for region, square in zip(regions, squares)
                         if square.any()})
    return Treated(list(rows) if k == len(rows) else [], grams, gram, C, weights,
                   getattr(treatment, "target", None), float(norm))


def call_treatment(treatment, gram, **more):
    """treatment(gram), with those of rng and losses that its parameters name."""
    parameters = inspect.signature(treatment).parameters.values()
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        names = {p.name for p in parameters}
        more = {name: value for name, value in more.items() if name in names}
    return treatment(gram, **more)


# --- 3.3 What a treatment did, for the log ---

def cosines(gram, C=None) -> np.ndarray:
    """cos(g_i, g_j), or with C cos(g_i', g_j').   gram, C [..., K, K] -> [K, K]

    Sums over the leading dimensions first. 0 where a gradient is zero, or was treated until
    nothing but rounding is left of it.
    """
    gram = np.asarray(gram)
    C = np.broadcast_to(np.eye(gram.shape[-1]), gram.shape) if C is None else C

    def total(C, gram):     # g_i' · g_j' = Σ_kl C_ik C_jl g_k · g_l
        return (C @ gram @ C.swapaxes(-1, -2)).reshape(-1, *gram.shape[-2:]).sum(0)
    products = total(C, gram)
    # Trap: compare with the terms of the sum. Rounding leaves a squared norm of ± 1e-17
    # times them, and a quotient of two such remnants can be anything.
    terms = np.diagonal(total(abs(C), abs(gram)))
    squares = np.diagonal(products)
    alive = squares > 1e-9 * terms
    norms = np.sqrt(np.where(alive, squares, 1))
    both = np.outer(alive, alive)
    return np.where(both, np.clip(products / norms[:, None] / norms, -1, 1), 0)


def describe(treated, regions=None) -> dict:
    """What a step's Treated says, for the log.   -> {name: number}

    norm_a = ‖g_a‖; cos_a_b between g_a and g_b, treated_cos_a_b between g_a' and g_b';
    coefficient_a, the factor with which g_a enters the update; acted_a_b, the share of
    units in which g_a got some of g_b, acted its mean over all ordered pairs; target_a_b,
    φᵀ, mean over units. No treated_cos and acted for a treatment that returns weights. With
    treat()'s regions also layers: {block: {cos_a_b}}.
    """
    if treated is None:
        return {"skipped": 1}
    log = {"grad_norm": treated.norm}
    names, gram, C = treated.tasks, treated.gram, treated.C
    if len(names) < 2 or not len(gram):
        return log
    ordered = list(itertools.permutations(range(len(names)), 2))
    pairs = [(i, j) for i, j in ordered if i < j]

    def by_pair(kind, matrix, pairs):
        return {f"{kind}_{names[i]}_{names[j]}": float(matrix[i, j]) for i, j in pairs}
    for name, norm, coefficient in zip(names, np.sqrt(np.diagonal(gram.sum(0))),
                                       treated.weights.mean(0)):
        log |= {f"norm_{name}": float(norm), f"coefficient_{name}": float(coefficient)}
    log.update(by_pair("cos", cosines(gram), pairs))
    if C is not None:       # mere weights treat no gradient by itself
        log.update(by_pair("treated_cos", cosines(gram, C), pairs))
        acted = (C != 0).mean(0)
        log["acted"] = float(np.mean([acted[pair] for pair in ordered]))
        log.update(by_pair("acted", acted, ordered))
    if treated.target is not None:
        log.update(by_pair("target", treated.target.mean(0), ordered))
    if regions:
        sums = {}
        for region, one in zip(regions, treated.grams):
            if region.unit is not None:
                sums[region.block] = sums.get(region.block, 0) + one
        log["layers"] = {block: by_pair("cos", cosines(one).round(4), pairs)
                         for block, one in sums.items()}
    return log
