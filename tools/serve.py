"""A page on this machine: type a sentence or a pair, see the answers and the attention.

    python tools/predict.py RUN --serve [--port N]

The page is serve.html, one file. It asks for the model's tasks once (/model), and while you
type for answers (/ask). The server is Python's own, a thread for each request; the model
takes one question at a time.

The page is for this machine alone. What keeps others out:

    127.0.0.1           another machine cannot connect
    Host header         a web page whose name was made to lead here is refused by that name
    Origin header       so is a question that another page in your browser asks
    Content-Security-Policy     the page runs its own script only, and loads nothing else
"""

import base64
import hashlib
import http.server
import json
import os
import re
import socketserver
import sys
import threading

import numpy as np
import torch

import bert
import data
from plumbing import declared

LONGEST = 2000          # characters of a text
BODY = 1 << 16          # bytes of a question: more than two such texts can take in JSON
READ = 1 << 24          # of a question that is too long; who sends more is cut off
MATRIX = 64             # tokens of the longest text whose attention is shown
PATIENCE = 10.0         # seconds that a client may be silent
PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "serve.html")


# --- What the model says ---

@torch.no_grad()
def attention_weights(model, batch, layer):
    """How much each token takes of each other one: softmax(Q Kᵀ / √D + mask).   [3.1]

    data.Batch of R rows, layer from 0 -> [R, A, T, T]; each row of a head adds up to 1.
    bert.attention() computes weights · V and does not return the weights. With the identity
    as V they are what it returns: the numbers that the model uses, not a second formula.
    """
    x = model.embed(batch)                                          # [R, T, H]
    for earlier in model.bert.layers[:layer]:
        x = earlier(x, batch.attention_mask)
    this = model.bert.layers[layer]
    query, key = this.split_heads(this.query(x)), this.split_heads(this.key(x))
    R, A, T, _ = query.shape
    identity = torch.eye(T, dtype=x.dtype, device=x.device).expand(R, A, T, T)
    return bert.attention(query, key, identity, batch.attention_mask)


def attention_of(model, texts, layer, head):
    """What the page draws.   -> {"rows": one for each sequence, "cut": tokens not read}

    A row has tokens [T], second [T], true for those of a pair's second text under CON, and
    weights [T][T], or None if there are too many of them to draw.
    """
    tokenizer = model.tokenizer
    ids = tuple(map(tokenizer, texts))
    batch = data.collate(data.Dataset("", [""], [ids], None), [0], tokenizer, model.con,
                         model.max_length)
    R, T = batch.input_ids.shape
    mask = batch.attention_mask
    lengths = [T] * R if mask is None else mask.sum(1).tolist()
    weights = None
    if T <= MATRIX:
        on_device = batch.to(next(model.parameters()).device)
        weights = attention_weights(model, on_device, layer)[:, head].cpu().numpy()
    rows, special = [], 0
    for r, length in enumerate(lengths):
        row = batch.input_ids[r, :length].tolist()
        segments = (batch.token_type_ids[r, :length] > 0 if batch.token_type_ids is not None
                    else torch.zeros(length, dtype=torch.bool))
        special += 3 if segments.any() else 2
        rows.append({"tokens": [tokenizer.tokens[i] for i in row],
                     "second": segments.tolist(),
                     "weights": weights if weights is None else
                     np.round(weights[r, :length, :length].astype(float), 4).tolist()})
    return {"rows": rows, "cut": sum(map(len, ids)) + special - sum(lengths)}


def described(model, tasks, title):
    """What the page must know of the model, as plain JSON."""
    def names(task):
        """Of its classes, or of the steps of a similarity that --sts-loss ce predicts."""
        labels = range(int(task.lowest), int(task.highest) + 1)
        if task.classes:
            return [f"{label} {name}" for label, name in zip(labels, task.classes)]
        return [str(label) for label in labels] if task.num_outputs > 1 else []
    return {"title": title, "con": model.con, "longest": LONGEST,
            "layers": model.bert.config.num_hidden_layers,
            "heads": model.bert.config.num_attention_heads,
            "untrained": [name for name in model.tasks if name not in model.trained],
            "tasks": [{"name": task.name, "heading": declared.heading(task),
                       "pair": task.pair, "label": task.label, "lowest": task.lowest,
                       "highest": task.highest, "names": names(task)} for task in tasks]}


def checked(model, question):
    """What was sent, as JSON -> (texts, layer, head).   Raises ValueError"""
    try:
        question = json.loads(question)
    except (ValueError, RecursionError):
        raise ValueError("needed a question in JSON") from None
    if not isinstance(question, dict) or set(question) != {"texts", "layer", "head"}:
        raise ValueError("needed texts, layer and head")
    texts, config = question["texts"], model.bert.config
    if not isinstance(texts, list) or len(texts) not in (1, 2) or not all(
            isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("needed one text or two")
    for text in texts:
        if len(text) > LONGEST:
            raise ValueError(f"needed a text of at most {LONGEST:,} characters, got "
                             f"{len(text):,}")
    for name, number in (("layer", config.num_hidden_layers),
                         ("head", config.num_attention_heads)):
        if type(question[name]) is not int or not 0 <= question[name] < number:
            raise ValueError(f"needed a {name} from 0 to {number - 1}")
    return [text.strip() for text in texts], question["layer"], question["head"]


def answered(model, tasks, question):
    """A question, as JSON -> the answers of all tasks that fit, and the attention.

    A pair's texts are also given to the tasks of single texts, one by one, and after the
    tasks of pairs. Raises ValueError for a question that is none.
    """
    texts, layer, head = checked(model, question)
    answers = []
    for task in sorted(tasks, key=lambda task: not task.pair):
        if task.pair and len(texts) < 2:
            continue
        asked = [tuple(texts)] if task.pair else texts
        predicted, probabilities = model.predict(task.name, asked, with_probabilities=True)
        for k in range(len(asked)):
            answers.append({
                "task": task.name, "text": None if task.pair else k,
                "prediction": float(predicted[k]),
                "probabilities": None if probabilities is None
                else probabilities[k].tolist()})
    return {"answers": answers, "attention": attention_of(model, texts, layer, head)}


# --- The server ---

def policy_of(page):
    """The Content-Security-Policy that allows a page's own style and script, by digest."""
    digests = {}
    for tag in ("style", "script"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1].encode()
        digests[tag] = base64.b64encode(hashlib.sha256(text).digest()).decode()
    return (f"default-src 'none'; style-src 'sha256-{digests['style']}'; "
            f"script-src 'sha256-{digests['script']}'; connect-src 'self'; img-src data:; "
            f"base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


class Server(socketserver.ThreadingTCPServer):
    """Raises ValueError for a port that cannot be had; port 0 is any free one."""
    daemon_threads = True               # a client that hangs does not delay the end
    request_queue_size = 128            # clients that wait; 5 are usual
    # On Windows this would let two programs have one port.
    allow_reuse_address = os.name != "nt"

    def __init__(self, model, tasks, title, port):
        self.model, self.tasks, self.lock = model, tasks, threading.Lock()
        self.description = described(model, tasks, title)
        with open(PAGE, encoding="utf-8", newline="") as file:
            self.page = file.read()
        self.policy = policy_of(self.page)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise ValueError(f"--port {port}: {error.strerror}; give another one, or 0 for "
                             f"any that is free") from None
        self.port = self.server_address[1]
        self.hosts = [f"{name}:{self.port}" for name in ("127.0.0.1", "localhost", "[::1]")]
        if self.port == 80:             # browsers leave that one out
            self.hosts += ["127.0.0.1", "localhost", "[::1]"]

    def handle_error(self, request, address):
        if not isinstance(sys.exc_info()[1], OSError):      # a client that has gone away
            super().handle_error(request, address)


class Handler(http.server.BaseHTTPRequestHandler):
    timeout = PATIENCE

    def do_GET(self):
        if self.is_for_us():
            if self.path == "/":
                self.reply(200, self.server.page, "text/html")
            elif self.path == "/model":
                self.reply(200, self.server.description)
            else:
                self.send_error(404, "there is no such page")

    def do_POST(self):
        question = self.received()
        if question is None or not self.is_for_us():
            return
        if self.path != "/ask":
            self.send_error(404, "there is no such page")
        elif self.headers["Origin"] != f"http://{self.headers['Host']}":
            self.send_error(403, "needed a question from this page, by its Origin")
        else:
            try:
                with self.server.lock:
                    reply = answered(self.server.model, self.server.tasks, question)
            except ValueError as error:
                self.send_error(400, str(error))
            else:
                self.reply(200, reply)

    def is_for_us(self):
        """Was this machine asked by its own name?"""
        names = self.headers.get_all("Host", [])
        if len(names) == 1 and names[0] in self.server.hosts:
            return True
        self.send_error(403, f"needed the address http://{self.server.hosts[0]}/")
        return False

    def received(self):
        """The body, or None if that was refused.

        A body that is too long is read, up to a limit: the client hears no answer before it
        has sent all.
        """
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,12}", length):
            return self.send_error(411, "needed a Content-Length")
        length = int(length)
        if length <= BODY:
            return self.rfile.read(length)
        left = min(length, READ)
        while left > 0 and (block := self.rfile.read(min(left, BODY))):
            left -= len(block)
        return self.send_error(413, f"needed at most {BODY:,} bytes, got {length:,}")

    def reply(self, status, content, kind="application/json"):
        """content: a page's text, or what becomes JSON"""
        if kind == "application/json":
            content = json.dumps(content, allow_nan=False)
        content = content.encode()
        self.send_response(status)
        for name, value in (("Content-Type", f"{kind}; charset=utf-8"),
                            ("Content-Length", str(len(content))),
                            ("Content-Security-Policy", self.server.policy),
                            ("Cross-Origin-Resource-Policy", "same-origin"),
                            ("X-Content-Type-Options", "nosniff"),
                            ("Referrer-Policy", "no-referrer"),
                            ("Cache-Control", "no-store")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code, message=None, explain=None):
        """One line instead of http.server's page."""
        self.reply(code, {"error": message or http.server.HTTPStatus(code).phrase})

    def log_message(self, *_):
        """Nothing: what somebody typed is nobody's business."""


def serve(model, tasks, title, port):
    """Answer until Ctrl-C.   -> exit status"""
    with Server(model, tasks, title, port) as server:
        print(f"http://127.0.0.1:{server.port}/ shows {title}, on this machine alone; "
              f"Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.lock.acquire()       # the model's last answer is not cut short
    print("stopped")
    return 0
