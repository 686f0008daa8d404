"""tools/serve.py, the page of tools/predict.py --serve."""

import _thread
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import unittest.mock
import warnings

import torch

import bert
import data
import heads
from tests.checks import assert_close, assert_equal, assert_one_line, assert_raises
from tests.test_4_3_tasks import NAMES, six_tasks
from tests.world import WORDS, analyzed, run_tool, run_train, small_bert, tiny_world
from tools import export, predict, serve


@contextlib.contextmanager
def served(model=None, title="a run", names=()):
    """A server in this process, of all its model's tasks or some.   -> serve.Server"""
    model = model or predict.load(analyzed())
    tasks = [model.tasks[name] for name in names or model.trained]
    with serve.Server(model, tasks, title, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def tiny_model(**settings):
    tokenizer = data.WordPiece(tiny_world()[1])
    return heads.MultitaskBert(small_bert(vocab_size=len(WORDS)), tokenizer=tokenizer,
                               **settings).eval()


def asked(server, body, path="/ask", method="POST", **headers):
    """-> (status, what the JSON says)

    A header that is None is not sent; one that is a list is sent several times.
    """
    home = f"127.0.0.1:{server.port}"
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    headers = {"Host": home, "Origin": f"http://{home}", "Content-Length": str(len(body)),
               **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host=True)
        for name, values in headers.items():
            for value in values if isinstance(values, list) else [values]:
                if value is not None:
                    connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        text = response.read().decode()
    if "json" in response.headers["Content-Type"]:
        return response.status, json.loads(text)
    return response.status, text


def question(*texts, layer=0, head=0):
    return {"texts": list(texts), "layer": layer, "head": head}


# --- What the model says ---

def test_tools_serve__attention_is_what_the_model_used():
    # Recorded in a pass of the model itself: its weights times V are what it made of V.
    for con, texts in ((True, ("good cat", "bad dog runs on")),
                       (False, ("good cat", "bad dog runs on")), (True, ("good cat",))):
        model, seen = tiny_model(con=con), []
        ids = tuple(map(model.tokenizer, texts))
        batch = data.collate(data.Dataset("", [""], [ids], None), [0], model.tokenizer,
                             con, 40)

        def watched(query, key, value, attention_mask, dropout, own=bert.attention,
                    seen=seen):
            output = own(query, key, value, attention_mask, dropout)
            seen.append((query, key, value, attention_mask, output))
            return output
        with torch.no_grad(), unittest.mock.patch.object(bert, "attention", watched):
            model(model.tasks["para" if len(texts) == 2 else "sst"], batch)
        for layer, (query, key, value, mask, output) in enumerate(seen):
            weights = serve.attention_weights(model, batch, layer)
            assert_close(weights @ value, output, 1e-6, "not this layer's weights")
            assert_close(weights @ value, bert.fused_attention(query, key, value, mask),
                         1e-6, "not those of the fused kernel")
            assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), 1e-6)
            scores = query @ key.transpose(-1, -2) / 2          # √D: 16 features, 4 heads
            if mask is not None:
                scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
            assert_close(weights, scores.softmax(-1), 1e-6, "not the softmax")
            for head in range(4):
                rows = serve.attention_of(model, texts, layer, head)["rows"]
                for r, row in enumerate(rows):
                    T = len(row["tokens"])
                    assert_close(row["weights"], weights[r, head, :T, :T], 6e-5,
                                 "another head is drawn")


def test_tools_serve__tokens_are_those_that_the_model_reads():
    model, apart = tiny_model(con=True), tiny_model()
    joint, = serve.attention_of(model, ("unaffable cat", "dog"), 0, 0)["rows"]
    assert_equal(" ".join(joint["tokens"]), "[CLS] un ##aff ##able cat [SEP] dog [SEP]")
    assert_equal(joint["second"], [False] * 6 + [True] * 2, "from the second text on")
    first, second = serve.attention_of(apart, ("cat dog man", "dog"), 0, 0)["rows"]
    assert_equal(second["tokens"], ["[CLS]", "dog", "[SEP]"])
    assert_equal(second["second"], [False] * 3)
    assert_equal([len(line) for line in second["weights"]], [3] * 3, "padding is not shown")
    # 40 positions: a pair keeps 37 tokens of its own, a sentence 38.
    for one, texts, cut in ((model, ("cat " * 30, "dog " * 30), 23),
                            (model, ("cat",), 0), (apart, ("cat " * 50,), 12),
                            (apart, ("cat " * 50, "dog"), 12)):
        assert_equal(serve.attention_of(one, texts, 0, 0)["cut"], cut)
    model.max_length = 8
    row, = serve.attention_of(model, ("cat " * 20,), 0, 0)["rows"]
    assert_equal(len(row["tokens"]), 8, "--max-length cuts what is drawn, too")
    with unittest.mock.patch.object(serve, "MATRIX", 5):
        row, = serve.attention_of(model, ("cat dog man runs",), 0, 0)["rows"]
    assert row["weights"] is None and len(row["tokens"]) == 6


def test_tools_serve__answers_are_those_of_predict():
    model = predict.load(analyzed())
    with served(model) as server:
        status, reply = asked(server, question(" good cat ", "bad dog"))
        _, alone = asked(server, question("good cat"))
    assert_equal(status, 200, reply)
    assert_equal([(a["task"], a["text"]) for a in reply["answers"]],
                 [("para", None), ("sts", None), ("sst", 0), ("sst", 1)])
    for answer in reply["answers"]:
        pair = answer["text"] is None
        text = ("good cat", "bad dog") if pair else ("good cat", "bad dog")[answer["text"]]
        predicted, p = model.predict(answer["task"], [text], with_probabilities=True)
        assert_close(answer["prediction"], predicted[0], 1e-6)
        if p is None:
            assert_equal(answer["probabilities"], None)
        else:
            assert_close(answer["probabilities"], p[0], 1e-6, answer["task"])
    assert_equal([(a["task"], a["text"]) for a in alone["answers"]], [("sst", 0)])


def test_tools_serve__any_tasks_are_described_and_answered():
    with unittest.mock.patch.object(heads, "tasks", six_tasks):
        model = tiny_model(con=True, trained=NAMES[1:])
    with served(model, "<b>") as server:
        _, found = asked(server, b"", "/model", "GET")
        _, reply = asked(server, question("good", "bad"))
    assert_equal((found["title"], found["layers"], found["heads"]), ("<b>", 2, 4))
    assert_equal(found["untrained"], ["sst"])
    tasks = {task["name"]: task for task in found["tasks"]}
    assert_equal(list(tasks), NAMES[1:])
    assert_equal(tasks["nli"]["names"], ["0 entailment", "1 neutral", "2 contradiction"])
    assert_equal((tasks["ease"]["names"], tasks["ease"]["highest"]), ([], 5))
    kinds = {a["task"]: type(a["probabilities"]) for a in reply["answers"]}
    assert_equal(kinds, {"para": float, "sts": type(None), "nli": list, "is_joke": float,
                         "ease": type(None)})
    # The printed losses: sentiment as a number, similarity as a class.
    with served(tiny_model(con=True, sts_loss="ce", sst_loss="mse")) as server:
        sst, _, sts = asked(server, b"", "/model", "GET")[1]["tasks"]
        answers = asked(server, question("good", "bad"))[1]["answers"]
    assert_equal((sst["names"][2], sts["names"]), ("2 neutral", list("012345")))
    assert_equal([a["probabilities"] and len(a["probabilities"]) for a in answers
                  if a["task"] != "para"], [6, None, None])


# --- Who may ask ---

def test_tools_serve__another_host_name_is_refused():
    with served() as server:
        right = f"localhost:{server.port}"
        names = ["evil.example", f"evil.example:{server.port}", "127.0.0.1", "localhost:1",
                 f"127.0.0.1.evil.example:{server.port}", f"0.0.0.0:{server.port}", "",
                 None, f"{right}@evil.example", ["x", right], [right, right]]
        with unittest.mock.patch.object(server.model, "predict") as never:
            for name in names:
                for path in ("/", "/model"):
                    status, said = asked(server, b"", path, "GET", Host=name)
                    assert_equal(status, 403, f"Host {name}")
                    assert "127.0.0.1" in said["error"]
                status, _ = asked(server, question("good"), Host=name,
                                  Origin=f"http://{name or ''}")
                assert_equal(status, 403, f"Host {name}")
            assert not never.called
        for name in ("127.0.0.1", "localhost", "[::1]"):
            host = f"{name}:{server.port}"
            assert_equal(asked(server, b"", "/", "GET", Host=host)[0], 200)
            assert_equal(asked(server, question("good"), Host=host,
                               Origin=f"http://{host}")[0], 200)


def test_tools_serve__a_question_from_another_page_is_refused():
    with served() as server, unittest.mock.patch.object(server.model, "predict") as never:
        home = f"127.0.0.1:{server.port}"
        for origin in ("http://evil.example", "null", None, "http://localhost:1",
                       f"https://{home}", f"http://localhost:{server.port}",
                       f"http://{home}.evil.example", home):
            status, said = asked(server, question("good"), Origin=origin)
            assert_equal(status, 403, f"Origin {origin}")
            assert "Origin" in said["error"]
        assert not never.called


def test_tools_serve__only_this_machine_can_connect():
    with served() as server:
        assert_equal(server.socket.getsockname()[0], "127.0.0.1")


def test_tools_serve__the_page_is_one_file_that_loads_nothing():
    with open(serve.PAGE, encoding="utf-8") as file:
        page = file.read()
    for word in ("://", "src=", "@import", "url(", "innerHTML", "outerHTML", "srcdoc",
                 "insertAdjacent", "document.write", "eval("):
        assert word not in page, f"the page has {word}"
    with served() as server:
        policy = server.policy
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for path in ("/", "/model", "/nothing"):
            connection.request("GET", path)
            response = connection.getresponse()
            assert_equal(response.headers["Content-Security-Policy"], policy)
            assert_equal(response.headers["X-Content-Type-Options"], "nosniff")
            assert response.read()
            connection.close()
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy


def test_tools_serve__what_is_no_question_gets_one_line():
    deep = b"[" * 60000
    with served() as server, unittest.mock.patch.object(server.model, "predict") as never:
        for body, status, words in (
                (b"", 400, "JSON"), (b"{", 400, "JSON"), (deep, 400, "JSON"),
                (b"\xff", 400, "JSON"), (b"NaN", 400, "texts, layer and head"),
                ([], 400, "texts, layer and head"), ({}, 400, "texts, layer and head"),
                ({**question("good"), "more": 1}, 400, "texts, layer and head"),
                (question(), 400, "one text or two"), (question("a", "b", "c"), 400, "two"),
                (question(" \t\n"), 400, "one text or two"), (question(1), 400, "text"),
                (question("good", layer=2), 400, "layer from 0 to 1"),
                (question("good", head=-1), 400, "head from 0 to 3"),
                (question("good", layer=True), 400, "layer"),
                (question("good", head=.5), 400, "head"),
                (question("x" * 2001), 400, "at most 2,000 characters, got 2,001"),
                (question("x" * 10 ** 6), 413, "at most 65,536 bytes, got 1,000,0")):
            got, said = asked(server, body)
            assert_equal(got, status, str(body)[:40])
            assert words in said["error"], said
            assert "\n" not in said["error"] and len(said["error"]) < 100
        for length in (None, "x", "-1", "+5", "1e3", ""):
            assert_equal(asked(server, question("good"), Content_Length=length)[0], 411)
        for method, path, status in (("POST", "/", 404), ("GET", "/ask", 404),
                                     ("PUT", "/ask", 501), ("GET", "/../serve.py", 404)):
            got, said = asked(server, question("good"), path, method)
            assert_equal(got, status, path)
            assert "\n" not in said["error"]
        assert not never.called
    # The longest text, of characters that JSON writes with twelve bytes, fits.
    with served() as server:
        status, reply = asked(server, question("\U0001f600" * 2000, "\U0001f600" * 2000))
        assert_equal(status, 200, reply)
        status, reply = asked(server, question("\ud800 \u202e \0 good"))
        row, = reply["attention"]["rows"]
        assert_equal((status, row["tokens"]), (200, ["[CLS]", "good", "[SEP]"]))


# --- Many at once, and those that hang ---

def test_tools_serve__a_hundred_at_once_are_all_answered_one_by_one():
    model = predict.load(analyzed())
    own, inside, most = model.predict, [], []

    def counted(*args, **more):
        inside.append(1)
        most.append(len(inside))
        time.sleep(.002)                # so that two at once would meet
        result = own(*args, **more)
        inside.pop()
        return result
    results, wait = {}, threading.Barrier(100)
    with served(model) as server, unittest.mock.patch.object(model, "predict", counted):
        def one(number):
            text = f"{WORDS[5 + number % 20]} cat"
            wait.wait()
            results[number] = asked(server, question(text))
        threads = [threading.Thread(target=one, args=(number,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert_equal([results[number][0] for number in range(100)], [200] * 100)
    assert_equal(max(most), 1, "the model had several questions at once")
    for number in range(100):
        row, = results[number][1]["attention"]["rows"]
        assert_equal(row["tokens"][1], WORDS[5 + number % 20], "another one's answer")


def test_tools_serve__a_client_that_hangs_blocks_nobody_and_is_let_go():
    head = b"POST /ask HTTP/1.1\r\nContent-Length: 50\r\n\r\n{"
    assert_equal(serve.Handler.timeout, serve.PATIENCE)
    with served() as server, unittest.mock.patch.object(serve.Handler, "timeout", 2.0):
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        for number, client in enumerate(clients):
            client.sendall((b"", b"GET", head)[number % 3])
        assert_equal(asked(server, question("good"))[0], 200)
        for client in clients:
            client.settimeout(30)
            assert client.recv(1) == b"", "still open"
            client.close()


def test_tools_serve__ctrl_c_ends_it_with_one_line():
    answers = []

    class Visited(serve.Server):
        def serve_forever(self):
            threading.Thread(target=self.visit).start()
            super().serve_forever()

        def visit(self):
            try:
                with socket.create_connection(("127.0.0.1", self.port)):    # it hangs
                    answers.append(asked(self, question("good"))[0])
            finally:
                _thread.interrupt_main()                        # what Ctrl-C does
    # A shell starts what runs in the background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with unittest.mock.patch.object(serve, "Server", Visited):
            status, output, errors = run_tool(predict, analyzed(), "--serve", "--port", 0)
    except KeyboardInterrupt:
        raise AssertionError("Ctrl-C was not caught") from None
    finally:
        signal.signal(signal.SIGINT, before)
    assert_equal(answers, [200])
    assert_equal((status, output.splitlines()[1:], errors), (0, ["stopped"], ""))


def test_tools_serve__a_port_in_use_or_flags_that_contradict_are_one_line():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, _, errors = run_tool(predict, analyzed(), "--serve", "--port", port)
    assert_one_line(status, errors, f"--port {port}", "in use", "another")
    for flags, words in ((["--port", 8001], "--serve"),
                         (["--serve", "--port", 70000], "65535"),
                         (["--serve", "--file", "x"], "--file")):
        assert_one_line(*run_tool(predict, analyzed(), *flags)[::2], words)


# --- Tasks that were not trained ---

def one_task():
    """A run of sentiment alone."""
    status, out, errors = run_train("--tasks", "sst")
    assert_equal(status, 0, errors)
    return out


def test_tools_serve__a_task_that_was_not_trained_is_not_offered():
    run = one_task()
    best = shutil.copytree(os.path.join(run, "best"), os.path.join(tempfile.mkdtemp(), "b"))
    for path in (run, best):
        status, output, errors = run_tool(predict, path, stdin="good\n")
        assert_equal(status, 0, errors)
        assert_equal(errors, "warning: not asked, as it was not trained: para, sts\n")
        assert output.startswith("sst\t") and output.count("\n") == 1
        status, output, _ = run_tool(predict, path, stdin="good\tbad\n")
        assert_equal((status, output), (2, ""), "a pair was answered by a random head")
        model = predict.load(path)
        with served(model) as server:
            _, found = asked(server, b"", "/model", "GET")
            _, reply = asked(server, question("good", "bad"))
        assert_equal([task["name"] for task in found["tasks"]], ["sst"])
        assert_equal(found["untrained"], ["para", "sts"])
        assert_equal({answer["task"] for answer in reply["answers"]}, {"sst"})
    # Asked by name, it answers and says what the answer is worth.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status, output, errors = run_tool(predict, best, "--task", "para", stdin="a\tb\n")
        assert_equal((status, output[:5]), (0, "para\t"), errors)
        assert caught, "a random head answered without a word"
        assert "para was not trained: its head is random" in str(caught.pop().message)
        model.predict("sst", ["good"])
        assert_equal(caught, [])
        model.predict("sts", [("good", "bad")])
        assert_equal(len(caught), 1, "a random head answered without a word")
    assert_one_line(*run_tool(export, best, "--task", "para", "--out", "x")[::2], "para",
                    "not trained", "sst")


def test_tools_serve__a_folder_of_an_earlier_version_offers_all_its_tasks():
    folder = shutil.copytree(os.path.join(one_task(), "best"),
                             os.path.join(tempfile.mkdtemp(), "best"))
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        config = json.load(file)
    assert_equal(config["multitask"]["trained"], ["sst"])
    for value in (5, "sst", {}, None, ["sst", "nli"], [["sst"]]):
        config["multitask"]["trained"] = value
        with open(path, "w") as file:
            json.dump(config, file)
        with assert_raises("trained", "config.json"):
            heads.MultitaskBert.from_pretrained(folder)
    config["multitask"]["trained"] = []
    with open(path, "w") as file:
        json.dump(config, file)
    status, _, errors = run_tool(predict, folder, stdin="good\n")
    assert_one_line(status, errors, "trained", "--task")
    del config["multitask"]["trained"]
    with open(path, "w") as file:
        json.dump(config, file)
    assert_equal(predict.load(folder).trained, ["sst", "para", "sts"])
    os.remove(os.path.join(folder, "vocab.txt"))
    assert_one_line(*run_tool(predict, folder, stdin="good\n")[::2], "vocab.txt")
