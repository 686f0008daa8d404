"""4.2 Evaluation: scores, predictions and their files."""

import contextlib
import dataclasses
import math
import os
import re
import tempfile
import unittest.mock
import warnings

import numpy as np
import torch

import bert
import data
import heads
from plumbing import declared
from tests import oracles
from tests.checks import assert_close, assert_equal, assert_raises, skip_in_a_copy
from tests.world import FakeTokenizer, small_bert, tiny_batch, tiny_world
from tools import results


def arrays(*lists):
    return [np.array(values, np.float64) for values in lists]


def test_4_2_accuracy__by_hand():
    assert_close(heads.accuracy(*arrays([1, 2, 3, 4], [1, 0, 3, 3])), .5, 0, mistakes={
        "the right ones are counted, not their share": 2.0,
        "two lists were compared as wholes, not number by number": 0.0,
        "it is a percentage": 50.0})
    assert_close(heads.accuracy(*arrays([1, 2, 3], [1, 0, 0])), 1 / 3, 1e-9, mistakes={
        "it is the share of wrong ones": 2 / 3})


def test_4_2_pearson__by_hand():
    # (1,2,3) and (1,2,4): deviations (-1,0,1), (-4/3,-1/3,5/3): 3 / √(2 · 14/3) = .981981.
    r = heads.pearson(*arrays([1, 2, 3], [1, 2, 4]))
    assert_close(r, 3 / math.sqrt(28 / 3), 1e-9, mistakes={
        "the means are not subtracted: that is the cosine": .991460134,
        "it is r², the square": 27 / 28,
        "it is the covariance, divided by n, or Spearman's, on ranks": 1.0,
        "it is the covariance, not divided": 3.0, "the root is missing": 9 / 28,
        "the root is missing, behind deviations that were scaled": 15 / 28,
        "a sum was divided by n, the other by n - 1": 2 / math.sqrt(28 / 3),
        })
    assert_close(heads.pearson(*arrays([1, 2, 9], [1, 2, 3])), .917663, 1e-5, mistakes={
        "it is Spearman's, on ranks": 1.0, "it is the covariance": 8 / 3,
        "the means are not subtracted: that is the cosine": .922225})
    assert_close(heads.pearson(*arrays([1, 2, 3], [30, 20, 10])), -1, 1e-12,
                 "r has a sign: below 0 where one falls as the other rises")
    x, y = np.random.default_rng(0).normal(size=(2, 50))
    assert_close(heads.pearson(x, y), oracles.numpys_pearson(x, y), 1e-12)
    assert_close(heads.pearson(2 * x + 100, y), heads.pearson(x, y), 1e-10)


def test_4_2_pearson__constant_prediction_is_zero_and_says_so():
    constant, changing = np.full(7, .5), np.arange(7.0)
    for x, y, hint in ((constant, changing, "0/0 is reported as 0"),
                       (changing, constant, "the labels may be constant too")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert_close(heads.pearson(x, y), 0.0, 0, hint)
        own = [w for w in caught if "encountered" not in str(w.message)]    # not numpy's
        assert own, "warnings.warn() must say that r is undefined, each time"


def test_4_2_pearson__predictions_that_are_not_finite_give_zero_and_a_warning():
    for bad in (math.nan, math.inf):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert_close(heads.pearson(*arrays([1.0, bad, 2.0], [1, 2, 3])), 0.0, 0,
                         f"r of predictions with {bad} is reported as 0")
        assert caught, f"warnings.warn() must say that r is undefined, for {bad} too"


def test_4_2_pearson__rounding_does_not_make_a_constant_side_vary():
    skip_in_a_copy("it need not know that the mean of seven times .1 is not exactly .1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_close(heads.pearson(*arrays([0.1] * 7, range(7))), 0.0, 0)
    assert caught and "undefined" in str(caught[0].message)


def test_4_2_overall_score__D12_recomputes_the_column_of_the_report():
    def overall(*scores):
        return heads.overall_score(dict(zip(heads.tasks(), scores)))
    assert_close(overall(.517, .871, .891), .778, 5e-4, mistakes={
        "r was not moved to (r + 1) / 2": .759667,
        "r was halved, not moved to (r + 1) / 2": .611167,
        "every score was moved to (r + 1) / 2, not r alone": .879833,
        "every score was halved": .379833,
        "accuracies were halved too": .5465,
        "the scores were added up, not averaged": 2.3335})
    assert_close(overall(.52, .43, .057), .493, 5e-4)           # printed 0.0493
    assert_close(overall(.521, .854, .887), .773, 5e-4)         # printed 0.772
    sts = heads.tasks()[2]
    assert_close(heads.overall_score({sts: 0.5}), .75, 1e-9, mistakes={
        "the sum was divided by 3; it must be by the number of tasks": .25})
    renamed = dataclasses.replace(sts, name="similarity")
    assert_close(heads.overall_score({renamed: 0.5}), .75, 1e-9, mistakes={
        "r is recognised by its task's name; it must be by task.metric": .5})
    shares = dataclasses.replace(sts, metric=heads.accuracy)
    assert_close(heads.overall_score({shares: 0.5}), .5, 1e-9, mistakes={
        "r is recognised by its task's name; it must be by task.metric": .75})


def test_4_2_outputs__probabilities_belong_to_the_predictions():
    folder, weights = tiny_world()
    encoder = bert.BertModel.from_pretrained(weights)
    tokenizer = data.WordPiece(os.path.join(weights, "vocab.txt"))
    for losses in ({}, {"sst_loss": "mse", "sts_loss": "ce"}):
        model = heads.MultitaskBert(encoder, con=True, **losses)
        for name in declared.REPORT:
            task = model.tasks[name]
            dataset = data.load(folder, task, "dev", tokenizer)
            predicted, p = heads.outputs(model, task, dataset, tokenizer)
            assert np.array_equal(predicted,
                                  heads.evaluate(model, task, dataset, tokenizer)[0])
            if name == "para":
                assert np.array_equal(p > .5, predicted == 1)
            elif task.num_outputs == 1:
                assert p is None, "a number has no classes"
            else:
                assert_close(p.sum(-1), np.ones(12), 1e-5)
                assert np.array_equal(p.argmax(-1), predicted)


def test_4_2_outputs__that_are_not_finite_are_said():
    model = heads.MultitaskBert(small_bert(), con=True)
    task, (dataset, _) = model.tasks["sts"], tiny_batch(True)
    with torch.no_grad():
        list(model.heads["sts"].parameters())[-1].fill_(float("inf"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        heads.outputs(model, task, dataset, FakeTokenizer)
    N = len(dataset)
    assert_equal([f"{N} of {N} outputs" in str(one.message) for one in said], [True])


def test_4_2_evaluate__order_of_the_file_and_mode_of_the_model():
    model = heads.MultitaskBert(small_bert(), con=True).train()
    task, (dataset, _) = model.tasks["sts"], tiny_batch(True)
    got, score = heads.evaluate(model, task, dataset, FakeTokenizer, batch_size=3)
    assert model.training
    model.eval()
    alone = [model(task, data.collate(dataset, [i], FakeTokenizer, True, 40))
             for i in range(4)]
    assert_close(got, torch.cat(alone), 1e-5,
                 "predictions must come back in the file's order")
    assert_close(score, heads.pearson(got, dataset.labels), 1e-6)


def test_4_2_evaluate__leaves_the_models_mode_as_it_was():
    model = heads.MultitaskBert(small_bert(), con=True)
    task, (dataset, _) = model.tasks["sts"], tiny_batch(True)
    for training in (True, False):
        heads.evaluate(model.train(training), task, dataset, FakeTokenizer)
        assert_equal(model.training, training, "is the model in training mode afterwards?")


def test_4_2_evaluate__leaves_a_part_in_another_mode_as_it_was_also_after_an_error():
    model = heads.MultitaskBert(small_bert(), con=True)
    task, (dataset, _) = model.tasks["sts"], tiny_batch(True)
    for whole, encoder in ((True, False), (False, True)):       # frozen; dropout wanted
        model.train(whole).bert.train(encoder)
        one, two = (heads.evaluate(model, task, dataset, FakeTokenizer)[0] for _ in "ab")
        assert np.array_equal(one, two), "the evaluation runs under dropout"
        with (unittest.mock.patch("data.collate", side_effect=ValueError("no batch")),
              assert_raises("no batch")):
            heads.evaluate(model, task, dataset, FakeTokenizer)
        assert_equal((model.training, model.bert.training, model.bert.layers[0].training),
                     (whole, encoder, encoder), "which are in training mode afterwards?")


def test_4_2_evaluate__runs_without_dropout_under_autocast_and_without_gradients():
    model, seen = heads.MultitaskBert(small_bert(), con=True).train(), []
    task, (dataset, _) = model.tasks["sts"], tiny_batch(True)

    @contextlib.contextmanager
    def autocast():
        seen.append("autocast")
        yield
        seen.pop()
    model.heads["sts"].register_forward_hook(lambda module, args, out: states.append(
        (list(seen), module.training, torch.is_grad_enabled())))
    states = []
    heads.evaluate(model, task, dataset, FakeTokenizer, autocast=autocast)
    assert states, "the head was not called"
    assert states[0][0], "the evaluation does not run under autocast()"
    assert not states[0][1], "the evaluation runs in training mode, under dropout"
    assert not states[0][2], "the evaluation records gradients; use torch.no_grad()"


def test_4_2_evaluate__classes_are_written_as_whole_numbers():
    model = heads.MultitaskBert(small_bert(), con=True)
    path = os.path.join(tempfile.mkdtemp(), "x.csv")
    for name, form in (("sst", r"[0-4]"), ("para", r"[01]\.0"), ("sts", r"-?\d+\.\d+")):
        task, (dataset, _) = model.tasks[name], tiny_batch(True, name != "sst")
        got, _ = heads.evaluate(model, task, dataset, FakeTokenizer)
        data.write_predictions(path, task, dataset.ids, got)
        with open(path) as file:
            for line in file.read().splitlines()[1:]:
                value = line.split(",")[1].strip()
                assert re.fullmatch(form, value), (
                    f"a prediction of {name} is written as {value!r}, expected {form}")


def test_4_2_write_predictions__needs_one_for_each_id():
    path = os.path.join(tempfile.mkdtemp(), "x.csv")
    for values in ([1.5], [1.5, 2.5, 3.5]):
        with assert_raises("a prediction for each of 2 ids", f"got {len(values)}"):
            data.write_predictions(path, heads.tasks()[2], ["a", "b"], values)
    assert not os.path.exists(path), "nothing is written then"
    data.write_predictions(path, heads.tasks()[2], ["a", "b"], [1.5, 2])     # also a list
    assert results.read_predictions(path) == {"a": 1.5, "b": 2}


def test_4_2_read_predictions__gives_back_what_was_written():
    path = os.path.join(tempfile.mkdtemp(), "x.csv")
    data.write_predictions(path, heads.tasks()[2], ["Ab1", "c"], np.array([.5, -2.25]))
    assert results.read_predictions(path) == {"ab1": .5, "c": -2.25}
    with open(path, "a") as file:
        file.write("d , nothing \n")
    with assert_raises("x.csv", "line 4", "nothing"):
        results.read_predictions(path)


def test_4_2_write_predictions__format_of_the_courses_grader():
    folder = tempfile.mkdtemp()
    for task, values, lines in zip(
            heads.tasks(), (np.array([3, 0]), np.array([1.0, 0.0], np.float32),
                            np.array([2.5, 4.75], np.float32)),
            (["id \t Predicted_Sentiment ", "x , 3 ", "y , 0 "],
             ["id \t Predicted_Is_Paraphrase ", "x , 1.0 ", "y , 0.0 "],
             ["id \t Predicted_Similiary ", "x , 2.5 ", "y , 4.75 "])):
        path = os.path.join(folder, "p.csv")
        data.write_predictions(path, task, ["x", "y"], values)
        with open(path) as file:
            assert file.read() == "\n".join(lines) + "\n"
