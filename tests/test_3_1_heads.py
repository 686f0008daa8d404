"""3.1 The tasks' losses and predictions, and the model with their heads."""

import json
import math
import os
import tempfile

import torch

import data
import heads
from tests.checks import assert_close, assert_equal, assert_raises
from tests.world import FakeTokenizer, small_bert, tiny_batch


def test_3_1_tasks__losses_by_hand():
    sst, para, sts = heads.tasks()[:3]
    # 5 equal logits: ln 5. One logit 0: ln 2. Predicted 2 for 3.5: 1.5² = 2.25.
    assert_close(sst.loss(torch.zeros(2, 5), torch.tensor([0.0, 4.0])), math.log(5), 1e-6,
                 mistakes={"the losses are summed, not averaged": 2 * math.log(5)})
    assert_close(para.loss(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0])), math.log(2),
                 1e-6, mistakes={"the losses are summed, not averaged": 3 * math.log(2)})
    assert_close(sts.loss(torch.tensor([2.0, 3.0]), torch.tensor([3.5, 3.0])), 1.125, 1e-6,
                 mistakes={"the losses are summed, not averaged": 2.25,
                           "the error is not squared": .75, "the label was rounded": 2.0,
                           "half of the square was taken": .5625})


def test_3_1_tasks__losses_take_logits_not_probabilities():
    # e^logits = (1, 1, 2), label 2: ln 2; then three equal ones: ln 3. Mean .895880.
    sst, para, _ = heads.tasks()[:3]
    logits = torch.tensor([[0, 0, math.log(2)], [0, 0, 0]])
    assert_close(sst.loss(logits, torch.tensor([2.0, 0])), .895880, 1e-5,
                 mistakes={"softmax is taken twice": 1.018841})
    # σ(ln 3) = ¾, a paraphrase: -ln ¾ = .287682; σ(0) = ½, none: .693147. Mean .4904.
    assert_close(para.loss(torch.tensor([math.log(3), 0.0]), torch.tensor([1.0, 0.0])),
                 .490415, 1e-5, mistakes={"the sigmoid is taken twice": .680474,
                                          "the labels are exchanged": 1.039721})
    # log σ(-200) is -200, but σ(-200) is 0 in float32.
    assert_close(para.loss(torch.tensor([-200.0]), torch.tensor([1.0])), 200, 1e-3,
                 "take the logarithm of the sigmoid in one step: log σ(z) = -log(1 + e^-z)")


def test_3_1_tasks__predictions():
    sst, para, sts = heads.tasks()[:3]
    assert_equal(sst.predict(torch.tensor([[0, 3, 1, 0, 0.0]])).tolist(), [1])
    assert_equal(para.predict(torch.tensor([-.1, .1])).tolist(), [0.0, 1.0],
                 "a logit above 0 is a probability above ½")
    assert_close(sts.predict(torch.tensor([2.75])), [2.75], 0)


def test_3_1_tasks__D1_printed_losses_lose_what_the_labels_say():
    # As printed, STS is cross-entropy over whole classes: 2.4 and 1.6 become one label.
    printed, ours = heads.tasks(sts_loss="ce")[2], heads.tasks()[2]
    logits = torch.randn(1, 6)
    assert_close(printed.loss(logits, torch.tensor([2.4])),
                 printed.loss(logits, torch.tensor([1.6])), 0,
                 "labels are rounded, not truncated")
    apart = [ours.loss(torch.tensor([2.0]), torch.tensor([y])).item() for y in (2.5, 1.6)]
    assert_close(apart, [.25, .16], 1e-6, mistakes={"labels are rounded": [0, 0]})
    assert printed.num_outputs == 6 and printed.predict(logits).item() == logits.argmax()
    # As printed, SST is a number: unsure between 0 and 4, it must predict 2.
    number = heads.tasks(sst_loss="mse")[0]
    assert_close(number.loss(torch.tensor([2.0]), torch.tensor([4.0])), 4.0, 1e-6)
    assert number.predict(torch.tensor([-3.0, 1.6, 9.0])).tolist() == [0, 2, 4]
    assert heads.tasks()[0].num_outputs == 5


def test_3_1_tasks__each_has_the_divergence_of_its_loss():
    import smart
    kinds = {heads.cross_entropy: smart.symmetric_kl,
             heads.squared_error: smart.squared_difference,
             heads.binary_cross_entropy: smart.binary_symmetric_kl}
    for losses in ({}, {"sst_loss": "mse", "sts_loss": "ce"}):
        for task in heads.tasks(**losses):
            assert task.divergence is kinds[task.loss], f"{task.name}, {losses}"


def batch_for(x, mask=None):
    """A data.Batch whose rows are embedded as x."""
    return data.Batch(torch.zeros(x.shape[:2], dtype=torch.long), None, mask, None)


def stand_in(con, pool="cls"):
    """A model whose encoder returns x and x[:, 0], and whose heads return what they get."""
    model = heads.MultitaskBert(small_bert(), con=con, pool=pool).eval()
    model.bert.encode = lambda x, attention_mask=None: (x, x[:, 0])
    model.heads = torch.nn.ModuleDict({name: torch.nn.Identity() for name in model.tasks})
    return model, model.tasks["sts"]


def test_3_1_MultitaskBert__logits_have_their_shapes():
    for con in (False, True):
        model = heads.MultitaskBert(small_bert(), con=con)
        for task, shape in zip(model.tasks.values(), ((4, 5), (4,), (4,))):
            batch = tiny_batch(con, task.pair)[1]
            assert_equal(tuple(model(task, batch).shape), shape,
                         f"{task.name}, con {con}: does the task's head come last?")


def test_3_1_MultitaskBert__first_sentences_then_second_ones_side_by_side():
    # Rows 1, 2 are the first sentences of two pairs, rows 3, 4 their second ones.
    model, task = stand_in(con=False)
    x = torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1)
    batch = batch_for(x)
    assert_close(model.logits(task, x, batch), [[1, 3], [2, 4]], 0, mistakes={
        "the examples are in reverse order": [[2, 4], [1, 3]],
        "neighbouring rows were taken for a pair": [[1, 2], [3, 4]],
        "the second sentence comes first": [[3, 1], [4, 2]],
        "the two vectors were added": [[4], [6]],
        "the two vectors were not joined": [[1], [2], [3], [4]]})
    model, task = stand_in(con=True)
    assert_close(model.logits(task, x, batch), [[1], [2], [3], [4]], 0,
                 "with CON every row is a pair already")


def test_3_1_MultitaskBert__mean_pooling_by_hand():
    # Tokens 1, 3, 11, of which the last is padding: 2.
    model, task = stand_in(con=True, pool="mean")
    x = torch.tensor([1.0, 3, 11]).view(1, 3, 1)
    batch = batch_for(x, torch.tensor([[1, 1, 0]]))
    assert_close(model.logits(task, x, batch), [[2.0]], 1e-6, mistakes={
        "padding is in the sum and in the count": [[5.0]],
        "it is the sum over tokens, not their mean": [[4.0]],
        "padding is in the count": [[4 / 3]],
        "the first token was taken": [[1.0]]})
    assert_close(model.logits(task, x, batch_for(x)), [[5.0]], 1e-6,
                 "attention_mask None means that nothing is padded")


def test_3_1_MultitaskBert__the_encoder_gets_the_mask():
    model, task = stand_in(con=True)
    x, mask, seen = torch.ones(1, 3, 1), torch.tensor([[1, 1, 0]]), []

    def encode(x, attention_mask=None):
        seen.append(attention_mask)
        return x, x[:, 0]
    model.bert.encode = encode
    model.logits(task, x, batch_for(x, mask))
    assert seen, "logits() does not call self.bert.encode()"
    assert all(got is not None and torch.equal(got, mask) for got in seen), (
        "encode() gets no batch.attention_mask: padding is seen")


def test_3_1_MultitaskBert__separate_encoding_is_two_passes_side_by_side():
    model = heads.MultitaskBert(small_bert()).eval()
    task = model.tasks["sts"]
    dataset, batch = tiny_batch(False)
    model.heads["sts"] = torch.nn.Identity()
    got = model(task, batch)
    for i, (a, b) in enumerate(dataset.tokens):
        u, v = (model.bert(torch.tensor([[2, *s, 3]]))["pooler_output"][0] for s in (a, b))
        assert_close(got[i, :16], u, 1e-5)
        assert_close(got[i, 16:], v, 1e-5)


def test_3_1_MultitaskBert__mean_pooling_ignores_padding():
    model = heads.MultitaskBert(small_bert(), con=True, pool="mean").eval()
    dataset, batch = tiny_batch(True)
    got = model(model.tasks["para"], batch)
    alone = [model(model.tasks["para"], data.collate(dataset, [i], FakeTokenizer, True, 40))
             for i in range(4)]
    assert_close(got, torch.cat(alone), 1e-5, "padding counted in the mean?")
    with assert_raises("'cls' or 'mean'", "'max'"):
        heads.MultitaskBert(small_bert(), pool="max")


def test_3_1_MultitaskBert__a_cosine_head_compares_the_vectors_of_a_pair():
    model = heads.MultitaskBert(small_bert(), cosine=True, pool="mean", sts_loss="mse")
    plain = heads.MultitaskBert(small_bert(), pool="mean")
    plain.load_state_dict(model.state_dict())
    same, turned = torch.tensor([[3.0, 4, 3, 4]]), torch.tensor([[3.0, 4, -4, 3]])
    for name, scale, middle in (("para", 10, .5), ("sts", 5, 0)):
        head = heads.CosineHead([4, 1], 0.5, model.tasks[name]).eval()
        for uv, c in ((same, 1), (turned, 0), (same * torch.tensor([1, 1, -1, -1]), -1)):
            assert_close(head(uv) - heads.Head.forward(head, uv), [scale * (c - middle)],
                         1e-5, f"cosine {c}, {name}")
        half = torch.randn(8, 4).bfloat16()
        assert_close(head(half), head(half.float()), 1e-5, "a cosine in bfloat16")
        _, batch = tiny_batch(False)
        u, v = ((model.bert(batch.input_ids[rows], batch.attention_mask[rows])
                 ["last_hidden_state"] * batch.attention_mask[rows, :, None]).sum(1)
                for rows in (slice(4), slice(4, 8)))
        want = scale * (torch.cosine_similarity(u, v) - middle)
        task = model.tasks[name]
        assert_close(model.eval()(task, batch) - plain.eval()(task, batch), want, 1e-4)
    task = heads.tasks(sts_loss="ce")[2]
    model = heads.MultitaskBert(small_bert(), cosine=True, sts_loss="ce")
    assert type(model.heads["sts"]) is heads.Head, "a cosine has no place among six classes"
    assert type(model.heads["sst"]) is heads.Head, "one sentence has no cosine"
    with assert_raises("con and cosine contradict"):
        heads.MultitaskBert(small_bert(), con=True, cosine=True)


def test_3_1_MultitaskBert__what_does_not_fit_is_one_line():
    for name in ("names", "trained"):
        with assert_raises("one of the tasks sst, para, sts", "'snt'"):
            heads.MultitaskBert(small_bert(), **{name: ["sst", "snt"]})
    model = heads.MultitaskBert(small_bert(), names=iter(["sts", "sst"]),
                                trained=iter(["sts"]))
    assert_equal((list(model.tasks), model.trained), (["sst", "sts"], ["sts"]))
    with assert_raises("needed a tokenizer"):
        model.predict("sst", ["a cat"])
    encoder = small_bert()
    encoder.pooler = None
    with assert_raises("needs an encoder with a pooler"):
        heads.MultitaskBert(encoder)
    heads.MultitaskBert(encoder, pool="mean")


def test_3_1_MultitaskBert__logits_are_float32_under_autocast():
    # If they were bfloat16 numbers, a further rounding would change nothing.
    for con, more in ((True, {"hlh": True}), (False, {"cosine": True})):
        model = heads.MultitaskBert(small_bert(), con=con, **more).eval()
        for task in model.tasks.values():
            with torch.autocast("cpu", torch.bfloat16):
                got = model(task, tiny_batch(con, task.pair)[1])
            assert got.dtype == torch.float32, (
                f"got {got.dtype} logits; the head computes in float32 also under autocast")
            assert (got != got.bfloat16()).any(), (
                "the logits were rounded to bfloat16 and back: turn autocast off in the "
                "head")


def test_3_1_MultitaskBert__saved_and_loaded_is_the_same():
    model = heads.MultitaskBert(small_bert(), con=True, hlh=True, pool="mean",
                                sst_loss="mse")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        copy = heads.MultitaskBert.from_pretrained(folder)
        assert copy.settings == model.settings
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, copy.state_dict()[name]), name
        config = os.path.join(folder, "config.json")
        with open(config, encoding="utf-8") as file:
            settings = json.load(file)
        for wrong in (4, 41, 7.0, {"value": 7}):
            settings["multitask"]["max_length"] = wrong
            with open(config, "w", encoding="utf-8") as file:
                json.dump(settings, file)
            with assert_raises(config, "from 5 to 40", str(wrong)):
                heads.MultitaskBert.from_pretrained(folder)
        for cosine, kind in ((True, heads.CosineHead), (False, heads.Head)):
            heads.MultitaskBert(small_bert(), cosine=cosine).save_pretrained(folder)
            assert type(heads.MultitaskBert.from_pretrained(folder).heads["sts"]) is kind
        with open(config, encoding="utf-8") as file:
            settings = json.load(file)
        del settings["multitask"]["cosine"]     # as in a folder from before there was one
        with open(config, "w", encoding="utf-8") as file:
            json.dump(settings, file)
        heads.MultitaskBert.from_pretrained(folder)
        small_bert().save_pretrained(folder)
        with assert_raises("without heads"):
            heads.MultitaskBert.from_pretrained(folder)
