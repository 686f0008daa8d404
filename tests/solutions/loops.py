"""Every part, written with loops: slow, plain and right."""

import copy
import math
import warnings

import numpy as np
import torch

from multitask import check_gram, draw_orders
from smart import check_pair, random_state, set_random_state


class bert:
    def attention(query, key, value, attention_mask=None, dropout=0.0):
        B, A, T, D = query.shape
        if attention_mask is not None and tuple(attention_mask.shape) != (B, T):
            raise ValueError(f"wrong mask {tuple(attention_mask.shape)}")
        rows = []
        for b in range(B):
            for a in range(A):
                scores = torch.zeros(T, T, dtype=query.dtype)
                for i in range(T):
                    scores[i] = (query[b, a, i] * key[b, a]).sum(1) / D ** 0.5
                if attention_mask is not None:
                    scores[:, attention_mask[b] == 0] = -math.inf
                e = torch.exp(scores - scores.max(1, keepdim=True).values)
                weights = e / e.sum(1, keepdim=True)
                if dropout:
                    weights = weights * (torch.rand(T, T) >= dropout) / (1 - dropout)
                rows.append(weights @ value[b, a])
        return torch.stack(rows).reshape(B, A, T, D)

    class BertLayer:
        def split_heads(self, x):
            D = x.shape[2] // self.num_heads
            return torch.stack([x[:, :, a * D:(a + 1) * D] for a in range(self.num_heads)],
                               1)

        def forward(self, x, attention_mask=None):
            q, k, v = [self.split_heads(f(x)) for f in (self.query, self.key, self.value)]
            p = self.attention_dropout if self.training else 0.0
            heads = attention(  # noqa: F821
                q, k, v, attention_mask=attention_mask, dropout=p)
            heads = torch.cat([heads[:, a] for a in range(self.num_heads)], -1)
            x = self.attention_norm(self.dropout(self.attention_dense(heads)) + x)
            h = self.intermediate(x)
            h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
            return self.output_norm(self.dropout(self.output(h)) + x)

    class BertModel:
        def embed(self, input_ids, token_type_ids=None):
            B, T = input_ids.shape
            if T > self.config.max_position_embeddings:
                raise ValueError("too long")
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(input_ids)
            elif self.config.type_vocab_size < 2:
                raise ValueError("no segments")
            positions = torch.arange(T, device=input_ids.device).expand(B, T)
            x = self.position_embeddings(positions)
            x = x + self.token_type_embeddings(token_type_ids)
            return self.dropout(self.embedding_norm(x + self.word_embeddings(input_ids)))

        def encode(self, x, attention_mask=None):
            for i in range(len(self.layers)):
                x = self.layers[i](x, attention_mask)
            if self.pooler is None:
                return x, None
            return x, self.pooler(x[:, 0, :]).tanh()


class optim:
    class AdamW:
        def step(self, closure=None):
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.update(p, p.grad, *self.moments(p), group)
            return loss

        def update(self, p, g, m, v, t, group):
            b1, b2 = group["betas"]
            m.copy_(b1 * m + (1 - b1) * g)
            v.copy_(b2 * v + (1 - b2) * g * g)
            rate = group["lr"]
            if group["correct_bias"]:
                rate = rate * math.sqrt(1 - b2 ** t) / (1 - b1 ** t)
            p.data = p.data - rate * m / (torch.sqrt(v) + group["eps"])
            p.data.mul_(1 - group["lr"] * group["weight_decay"])

        def moments(self, p):
            state = self.state[p]
            state["t"] = state.get("t", 0) + 1
            for name in ("first", "second"):
                state.setdefault(name, torch.zeros_like(p.data))
            return state["first"], state["second"], state["t"]


class heads:
    def cross_entropy(logits, labels):
        rows = []
        for row, label in zip(logits, labels):
            row = row - row.max()
            rows.append(row.exp().sum().log() - row[int(round(float(label)))])
        return sum(rows) / len(rows)

    def binary_cross_entropy(logits, labels):
        softplus = torch.log1p(torch.exp(-logits.abs())) + logits.clamp(min=0)
        return (softplus - logits * labels).mean()

    def squared_error(logits, labels):
        return ((logits - labels) ** 2).sum() / len(labels)

    class Head:
        def forward(self, h):
            with torch.autocast(h.device.type, enabled=False):
                h = h.float()
                for i, layer in enumerate(self.layers):
                    if i > 0:
                        h = torch.clamp(h, min=0)
                    h = layer(self.dropout(h))
            if h.shape[-1] == 1:
                h = h[..., 0]
            return h

    class MultitaskBert:
        def logits(self, task, x, batch):
            hidden, vector = self.bert.encode(x, batch.attention_mask)
            if self.pool == "mean":
                vector = []
                for i in range(len(x)):
                    row = hidden[i]
                    if batch.attention_mask is not None:
                        row = row[batch.attention_mask[i] == 1]
                    vector.append(row.mean(0))
                vector = torch.stack(vector)
            if task.pair and not self.con:
                half = len(vector) // 2
                vector = torch.cat([vector[:half], vector[half:]], dim=1)
            return self.heads[task.name](vector)

    def accuracy(predictions, labels):
        right = 0
        for a, b in zip(predictions, labels):
            right += int(a == b)
        return right / len(labels)

    def pearson(predictions, labels):
        x, y = [float(v) for v in predictions], [float(v) for v in labels]
        if not all(map(math.isfinite, x + y)) or len(set(x)) == 1 or len(set(y)) == 1:
            warnings.warn("r is undefined here")
            return 0.0
        a, b = sum(x) / len(x), sum(y) / len(y)
        xy = sum((u - a) * (v - b) for u, v in zip(x, y))
        xx, yy = sum((u - a) ** 2 for u in x), sum((v - b) ** 2 for v in y)
        return xy / math.sqrt(xx * yy)

    def overall_score(scores):
        total = 0.0
        for task, score in scores.items():
            total += (1 + score) / 2 if task.metric is pearson else score   # noqa: F821
        return total / len(scores)


class multitask:
    def sequential(steps):
        epoch = []
        for task in steps:
            epoch.extend([(task,)] * steps[task])
        return epoch

    def round_robin(steps, aligned):
        return [tuple(steps.keys()) for _ in range(steps[aligned])]

    def backward(flat, micro_batches, loss_fn, rows, **more):
        for row in rows.values():
            flat.G[row] = 0
        sums = {}
        for task in micro_batches[0]:
            flat.attach(rows[task])
            for batches in micro_batches:
                loss, log = loss_fn(task, batches[task], **more)
                loss.div(len(micro_batches)).backward()
                for name, value in log.items():
                    key = name + "_" + task
                    sums[key] = sums.get(key, 0) + float(value) / len(micro_batches)
        return sums

    def pcgrad(gram, orders=None, rng=None):
        gram = check_gram(gram)
        K = gram.shape[-1]
        if orders is None:
            orders = draw_orders(K, rng)
        out = np.zeros(gram.shape)
        for unit in np.ndindex(gram.shape[:-2]):
            for i in range(K):
                c = [float(k == i) for k in range(K)]
                for j in orders[i]:
                    dot = sum(c[k] * gram[unit][k, j] for k in range(K))
                    if dot < 0 and gram[unit][j, j] > 0:
                        c[j] -= dot / gram[unit][j, j]
                out[unit][i] = c
        return out

    class GradVac:
        def __call__(self, gram, orders=None, rng=None):
            gram = check_gram(gram)
            K = gram.shape[-1]
            if orders is None:
                orders = draw_orders(K, rng)
            if self.target is None:
                self.target = np.zeros(gram.shape)
            out = np.zeros(gram.shape)
            for unit in np.ndindex(gram.shape[:-2]):
                g, target = gram[unit], self.target[unit]
                for i in range(K):
                    c = np.eye(K)[i]
                    for j in orders[i]:
                        own, other = c @ g @ c, g[j, j]
                        if own <= 0 or other <= 0:
                            continue
                        phi = (c @ g)[j] / math.sqrt(own * other)
                        phi = max(-1.0, min(1.0, phi))
                        t = max(-self.CLAMP, min(self.CLAMP, target[i, j]))
                        if phi < t:
                            root = math.sqrt(1 - t * t)
                            c[j] += math.sqrt(own) * (
                                t * math.sqrt(1 - phi * phi) - phi * root) / (
                                    math.sqrt(other) * root)
                        target[i, j] = (1 - self.beta) * target[i, j] + self.beta * phi
                    out[unit][i] = c
            return out


class data:
    def truncate_pair(a, b, budget):
        while a + b > budget:
            if a > b:
                a -= 1
            else:
                b -= 1
        return a, b

    def join_pair(a, b, cls, sep, max_length):
        a, b = list(a), list(b)
        while len(a) + len(b) + 3 > max_length:
            (a if len(a) > len(b) else b).pop()
        first, second = [cls] + a + [sep], b + [sep]
        return first + second, [0 for _ in first] + [1 for _ in second]


class smart:
    def symmetric_kl(a, b):
        check_pair(a, b)
        p, q = torch.log_softmax(a, 1), torch.log_softmax(b, 1)
        forward = torch.sum(p.exp() * (p - q), 1)
        return (forward + torch.sum(q.exp() * (q - p), 1)).mean()

    def binary_symmetric_kl(a, b):
        check_pair(a, b)
        return torch.mean((torch.sigmoid(a) - torch.sigmoid(b)) * (a - b))

    def squared_difference(a, b):
        check_pair(a, b)
        return torch.mean((a - b) ** 2)

    def smoothness(f, x, divergence, eps, steps=1, attention_mask=None, noise=None):
        if noise is None:
            noise = torch.randn_like(x) * eps
        delta = noise.detach().clone()
        if attention_mask is not None:
            delta[attention_mask == 0] = 0
        state = random_state(x.device)
        clean = f(x)
        for _ in range(steps):
            set_random_state(state, x.device)
            d = delta.clone().requires_grad_()
            change = divergence(f(x.detach() + d), clean.detach())
            g = torch.autograd.grad(change, [d])[0]
            for row in range(len(x)):
                largest = g[row].abs().max()
                if largest > 0:
                    delta[row] += 100 * eps * g[row] / largest
            delta = torch.clamp(delta, -eps, eps)
            if attention_mask is not None:
                delta[attention_mask == 0] = 0
        set_random_state(state, x.device)
        return clean, divergence(f(x + delta), clean)

    class Teacher:
        def __init__(self, model, flat):
            self.theta = flat.theta.detach().clone()
            self.model = copy.deepcopy(model)
            for name, p in self.model.named_parameters():
                p.requires_grad = False
                p.grad = None
                p.data = flat.views(self.theta)[name]

        def follow(self, theta, beta):
            self.theta.mul_(beta)
            self.theta.add_((1 - beta) * theta)

    def bregman(logits, teacher_logits, divergence):
        with torch.no_grad():
            fixed = teacher_logits.clone()
        return divergence(logits, fixed)
