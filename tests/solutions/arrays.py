"""Every part, written with whole arrays: einsum, broadcasting, other forms of equations."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from multitask import check_gram, draw_orders
from smart import check_pair, random_state, set_random_state


class bert:
    def attention(query, key, value, attention_mask=None, dropout=0.0):
        scores = torch.einsum("batd,basd->bats", query / query.size(-1) ** .5, key)
        if attention_mask is not None:
            needed = [query.size(0), query.size(2)]
            if list(attention_mask.shape) != needed:
                raise ValueError(f"needed a mask {needed}")
            scores = scores.masked_fill(~attention_mask.bool()[:, None, None], -1e9)
        weights = F.dropout(F.softmax(scores, dim=-1), dropout)
        return torch.einsum("bats,basd->batd", weights, value)

    class BertLayer:
        def split_heads(self, x):
            return x.unflatten(2, (self.num_heads, -1)).permute(0, 2, 1, 3)

        def forward(self, x, attention_mask=None):
            parts = [self.split_heads(matrix(x))
                     for matrix in (self.query, self.key, self.value)]
            mixed = attention(*parts, attention_mask,           # noqa: F821
                              self.training * self.attention_dropout)
            mixed = self.attention_dense(mixed.permute(0, 2, 1, 3).flatten(2))
            x = self.attention_norm(x + self.dropout(mixed))
            inner = self.output(nn.GELU()(self.intermediate(x)))
            return self.output_norm(x + self.dropout(inner))

    class BertModel:
        def embed(self, input_ids, token_type_ids=None):
            T, config = input_ids.shape[-1], self.config
            if T > config.max_position_embeddings or (
                    token_type_ids is not None and config.type_vocab_size == 1):
                raise ValueError("the tables are too small for this batch")
            segments = self.token_type_embeddings.weight[
                torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids]
            words = self.word_embeddings.weight[input_ids]
            return self.dropout(self.embedding_norm(
                words + self.position_embeddings.weight[None, :T] + segments))

        def encode(self, x, attention_mask=None):
            for layer in self.layers:
                x = layer(x, attention_mask=attention_mask)
            return x, self.pooler and torch.tanh(self.pooler(x.select(1, 0)))


class optim:
    class AdamW:
        def step(self, closure=None):
            with torch.enable_grad():
                loss = closure() if closure else None
            with torch.no_grad():
                for group in self.param_groups:
                    lr, (b1, b2) = group["lr"], group["betas"]
                    for p in filter(lambda p: p.grad is not None, group["params"]):
                        s = self.state[p]
                        if "mean" not in s:
                            s.update(mean=torch.zeros_like(p), square=torch.zeros_like(p),
                                     b1=1.0, b2=1.0)
                        s["mean"].lerp_(p.grad, 1 - b1)
                        s["square"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                        s["b1"], s["b2"] = s["b1"] * b1, s["b2"] * b2
                        size = lr
                        if group["correct_bias"]:
                            size *= (1 - s["b2"]) ** .5 / (1 - s["b1"])
                        p -= size * s["mean"] / (s["square"].sqrt() + group["eps"])
                        p -= lr * group["weight_decay"] * p
            return loss


class heads:
    def cross_entropy(logits, labels):
        hot = F.one_hot(torch.round(labels).long(), logits.size(-1))
        return -(hot * F.log_softmax(logits, -1)).sum(-1).mean()

    def binary_cross_entropy(logits, labels):
        return -(labels * F.logsigmoid(logits)
                 + (1 - labels) * F.logsigmoid(-logits)).mean()

    def squared_error(logits, labels):
        return torch.dist(logits, labels).square() / logits.numel()

    class Head:
        def forward(self, h):
            with torch.autocast(h.device.type, enabled=False):
                h = self.layers[0](self.dropout(h.to(torch.float32)))
                for layer in self.layers[1:]:
                    h = layer(self.dropout(h.relu()))
            return h.flatten(-2) if h.size(-1) == 1 and h.dim() == 2 else h

    class MultitaskBert:
        def logits(self, task, x, batch):
            states, pooled = self.bert.encode(x, batch.attention_mask)
            if self.pool == "mean":
                mask = torch.ones(x.shape[:2]) if batch.attention_mask is None else (
                    batch.attention_mask)
                weights = mask / mask.sum(1, keepdim=True)
                pooled = torch.einsum("rt,rth->rh", weights.to(states.dtype), states)
            if task.pair and not self.con:
                pooled = pooled.unflatten(0, (2, -1)).transpose(0, 1).flatten(1)
            return self.heads[task.name](pooled)

    def accuracy(predictions, labels):
        return float((np.array(predictions) == np.array(labels)).mean())

    def pearson(predictions, labels):
        import warnings
        x, y = np.array(predictions, float), np.array(labels, float)
        if not np.isfinite([x, y]).all() or np.ptp(x) == 0 or np.ptp(y) == 0:
            warnings.warn("not defined: one side is constant or not finite")
            return 0.0
        x, y = x - x.mean(), y - y.mean()
        return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))

    def overall_score(scores):
        return float(np.mean([(score + 1) / 2 if task.metric.__name__ == "pearson"
                              else score for task, score in scores.items()]))


class multitask:
    def sequential(steps):
        return sum(([(task,)] * number for task, number in steps.items()), [])

    def round_robin(steps, aligned):
        return list(zip(*[[task] * steps[aligned] for task in steps]))

    def backward(flat, micro_batches, loss_fn, rows, **more):
        flat.G[sorted(set(rows.values()))] = 0
        logs, share = [], 1 / len(micro_batches)
        for batches in micro_batches:
            log = {}
            for task, batch in batches.items():
                flat.attach(rows[task])
                loss, values = loss_fn(task, batch, **more)
                (share * loss).backward()
                log.update({f"{name}_{task}": value.item()
                            for name, value in values.items()})
            logs.append(log)
        return {name: np.mean([log[name] for log in logs]) for name in logs[0]}

    def pcgrad(gram, orders=None, rng=None):
        gram = check_gram(gram)
        K = gram.shape[-1]
        orders = orders if orders is not None else draw_orders(K, rng)
        C = np.zeros(gram.shape) + np.eye(K)
        for i, order in enumerate(orders):
            for j in order:
                norm = gram[..., j, j]
                dot = np.minimum(0, np.einsum("...k,...k->...", C[..., i, :],
                                              gram[..., :, j]))
                C[..., i, j] -= np.divide(dot, norm, out=np.zeros_like(dot), where=norm > 0)
        return C

    class GradVac:
        def __call__(self, gram, orders=None, rng=None):
            gram = check_gram(gram)
            K = gram.shape[-1]
            orders = orders if orders is not None else draw_orders(K, rng)
            if self.target is None:
                self.target = np.zeros_like(gram)
            C = np.zeros(gram.shape) + np.eye(K)
            for i, order in enumerate(orders):
                for j in order:
                    row = C[..., i, :]
                    dot = (row * gram[..., :, j]).sum(-1)
                    own = np.einsum("...k,...kl,...l->...", row, gram, row)
                    ok = (own > 0) & (gram[..., j, j] > 0)
                    a = np.sqrt(np.where(ok, own, 1))
                    b = np.sqrt(np.where(ok, gram[..., j, j], 1))
                    phi = np.clip(np.where(ok, dot / a / b, 0), -1, 1)
                    old = self.target[..., i, j]
                    goal = np.clip(old, -self.CLAMP, self.CLAMP)
                    # tan of the angle's complement, before and after
                    sine = np.sqrt(1 - phi ** 2)
                    w = a / b * (goal / np.sqrt(1 - goal ** 2) * sine - phi)
                    C[..., i, j] += np.where(ok & (phi < goal), w, 0)
                    self.target[..., i, j] = np.where(
                        ok, old + self.beta * (phi - old), old)
            return C


class data:
    def truncate_pair(a, b, budget):
        if a + b <= budget:
            return a, b
        half = budget // 2
        if b <= half:
            return budget - b, b
        if a <= budget - half:
            return a, budget - a
        return budget - half, half

    def join_pair(a, b, cls, sep, max_length):
        n, m = truncate_pair(len(a), len(b), max_length - 3)        # noqa: F821
        row = [cls]
        row += a[:n]
        row.append(sep)
        segments = [0] * len(row)
        row += [*b[:m], sep]
        return row, segments + [1] * (len(row) - len(segments))


class smart:
    def symmetric_kl(a, b):
        check_pair(a, b)
        p, q = (F.log_softmax(x, -1) for x in (a, b))
        return (F.kl_div(q, p, log_target=True, reduction="batchmean")
                + F.kl_div(p, q, log_target=True, reduction="batchmean"))

    def binary_symmetric_kl(a, b):
        check_pair(a, b)
        return ((a - b) * (a.sigmoid() - b.sigmoid())).sum() / a.numel()

    def squared_difference(a, b):
        check_pair(a, b)
        return F.mse_loss(a, b)

    def smoothness(f, x, divergence, eps, steps=1, attention_mask=None, noise=None):
        noise = eps * torch.randn_like(x) if noise is None else noise
        keep = torch.ones_like(x) if attention_mask is None else (
            attention_mask.unsqueeze(-1).to(x.dtype).expand_as(x))
        state = random_state(x.device)

        def again(y):
            set_random_state(state, x.device)
            return f(y)
        delta, clean = noise.detach() * keep, f(x)
        for _ in range(steps):
            point = (x.detach() + delta).requires_grad_()
            g, = torch.autograd.grad(divergence(again(point), clean.detach()), point)
            size = torch.linalg.vector_norm(g, float("inf"), (1, 2), keepdim=True)
            g = torch.nan_to_num(g / size)
            delta = keep * torch.clamp(delta + 100 * eps * g, min=-eps, max=eps)
        return clean, divergence(again(x + delta), clean)

    class Teacher:
        def __init__(self, model, flat):
            self.model = copy.deepcopy(model)
            self.model.requires_grad_(False)
            self.model.zero_grad(set_to_none=True)
            self.theta = torch.clone(flat.theta).detach()
            own = dict(self.model.named_parameters())
            for name, view in flat.views(self.theta).items():
                own[name].data = view

        def follow(self, theta, beta):
            self.theta.copy_(beta * self.theta + (1 - beta) * theta)

    def bregman(logits, teacher_logits, divergence):
        return divergence(logits, teacher_logits.detach().clone())
