"""Asks a policy server for chunks of actions. One file for a robot's computer: numpy, websockets and msgpack, no torch.

The wire is openpi's: binary websocket frames of msgpack, in which an array is a map with bytes keys. After the
connection the server sends its metadata; then every observation is answered with `actions` (T, A). Text is an error.
"""

from __future__ import annotations

import math
import operator
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ssl import SSLContext
from typing import Any, NamedTuple, cast

import msgpack
import numpy as np
from websockets.exceptions import WebSocketException
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

DTYPES = ("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
MAX_DEPTH = 8  # maps and lists inside each other, and dimensions of an array
MAX_ITEMS = 1024  # entries of one map or list
MAX_CONTAINERS = 4096  # maps and lists of one message
OPTIONS = {"compression": None, "proxy": None, "max_size": 2**24, "max_queue": 1, "close_timeout": 0.2}
PAUSES_S = (0.05, 2.0)  # after the first failure of a server, and the longest; every further failure doubles it


def pack(value: Any) -> bytes:
    """A message from numbers, strings, lists, maps with string keys and numpy arrays; `ValueError` for others."""
    try:
        return cast(bytes, msgpack.packb(value, default=_pack_array))
    except (TypeError, OverflowError) as error:
        raise ValueError(f"the message cannot be packed: {error}") from error


def unpack(data: bytes) -> Any:
    """The content of a message; its arrays are read-only views of `data`.

    Nothing in a message is trusted: dtypes come from a list, an array has the bytes of its shape, depth and number of
    entries are bounded. `ValueError` says in one line what is wrong.
    """
    containers = 0

    def bounded(entries: list[Any]) -> list[Any]:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise ValueError(f"more than {MAX_CONTAINERS} maps and lists")
        return entries

    hooks = {"object_pairs_hook": lambda pairs: _map(bounded(pairs)), "list_hook": bounded}
    try:
        content = msgpack.unpackb(data, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, **hooks)
        _check_content(content, MAX_DEPTH)
    except (ValueError, ArithmeticError, msgpack.UnpackException) as error:
        raise ValueError(f"invalid message: {_one_line(error)}") from None
    return content


def _pack_array(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic):
        raise ValueError(f"a {type(value).__name__} cannot be packed; expected numbers, strings, lists, maps or arrays")
    dtype = value.dtype.newbyteorder("<")
    if dtype.str not in DTYPES:
        raise ValueError(f"dtype {value.dtype} cannot be packed; choices: {' '.join(DTYPES)}")
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype.str}
    return {b"__ndarray__": True, b"data": value.astype(dtype).tobytes(), b"dtype": dtype.str, b"shape": value.shape}


def _map(pairs: list[tuple[Any, Any]]) -> Any:
    """The map, array or numpy scalar that these entries are."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a map has a key twice")
    if b"__ndarray__" in content:
        return _array(content)
    if b"__npgeneric__" not in content:
        return content
    if content.keys() != {b"__npgeneric__", b"data", b"dtype"} or not isinstance(content[b"data"], bool | int | float):
        raise ValueError("a numpy scalar must be a number with a dtype")
    with np.errstate(over="raise"):
        value = _dtype(content).type(number := content[b"data"])
    if value != number and number == number:
        raise ValueError(f"a numpy scalar of dtype {value.dtype} cannot be {number}")
    return value


def _array(content: dict[Any, Any]) -> np.ndarray:
    if content.keys() != {b"__ndarray__", b"data", b"dtype", b"shape"}:
        raise ValueError("an array must have exactly the keys __ndarray__, data, dtype and shape")
    data, shape, dtype = content[b"data"], content[b"shape"], _dtype(content)
    if not isinstance(shape, list) or len(shape) > MAX_DEPTH or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"an array's shape must be a list of at most {MAX_DEPTH} sizes")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"the data of an array must be the bytes of shape {shape} and dtype {dtype}")
    if dtype.kind == "b" and data.translate(None, b"\x00\x01"):
        raise ValueError("an array of booleans has bytes other than 0 and 1")
    return np.ndarray(tuple(shape), dtype, data)


def _dtype(content: dict[Any, Any]) -> np.dtype:
    name = content[b"dtype"]
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"dtype {_one_line(str(name), 40)!r} is not allowed; choices: {' '.join(DTYPES)}")
    return np.dtype(name)


def _check_content(value: Any, depth: int) -> None:
    """Raises `ValueError` for what has no place in a message."""
    if depth < 0:
        raise ValueError(f"more than {MAX_DEPTH} maps and lists inside each other")
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        raise ValueError("a map that is no array has bytes keys; expected strings")
    if not isinstance(value, dict | list | bool | int | float | str | np.ndarray | np.generic | None):
        raise ValueError(f"a {type(value).__name__} stands outside an array")
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_content(entry, depth - 1)


def _one_line(error: BaseException | str, limit: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + "..."


class Client:
    """One connection to a policy server, made when it is needed and again after it was lost. For a single thread.

    `infer` blocks for at most `timeout_s`, and as long again when it must connect first. Choose it for scripts and
    where the control loop may wait; a loop that may not takes a `RemoteController`.

    Args:
        uri: `ws://host:port`, or `wss://host:port` with TLS.
        key: sent as `Authorization: Api-Key KEY`.
        timeout_s: longest wait for an answer, and for a connection and the server's greeting, in seconds.
        tls: certificates to trust; None takes the system's.
    """

    def __init__(self, uri: str, key: str | None = None, timeout_s: float = 2.0, tls: SSLContext | None = None):
        self.uri, self.timeout_s = uri, timeout_s
        headers = {"Authorization": f"Api-Key {key}"} if key else None
        self._options: dict[str, Any] = {"additional_headers": headers, "ssl": tls, "open_timeout": timeout_s}
        self._connection: ClientConnection | None = None
        self._metadata: dict[str, Any] = {}

    def connect(self) -> dict[str, Any]:
        """The server's metadata, over a new connection if there is none.

        Raises:
            ConnectionError, TimeoutError, ValueError: it cannot be reached or refuses, is late, greets wrongly.
        """
        if self._connection is not None and self._connection.protocol.state is State.OPEN:
            return self._metadata
        self.close()
        with self._exchange() as deadline:
            connection = connect(self.uri, ping_interval=None, **OPTIONS, **self._options).__enter__()
            self._connection = connection
            # Without this a send to a server that does not read could wait for ever.
            connection.socket.settimeout(self.timeout_s)
            self._metadata = self._receive(connection, deadline)
        return self._metadata

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to an observation: `actions` (T, A) in physical units, and the server's timings.

        The observation holds arrays by name, each (*shape) or the history (O, *shape); `reset` and `decision` besides.

        Raises:
            ValueError: the observation cannot be sent, or the answer is not valid: no map, another shape, NaN.
            RuntimeError: the server's error text.
            ConnectionError, TimeoutError: no connection, or no answer in time. The next call connects anew.
        """
        message = pack(dict(observation))
        self.connect()
        assert self._connection is not None
        with self._exchange() as deadline:
            self._connection.send(message)
            answer = self._receive(self._connection, deadline)
            self._check(answer)
        return answer

    def close(self) -> None:
        """Ends the connection, if there is one; the client can be used again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _exchange(self) -> Iterator[float]:
        """Gives the deadline; ends the connection on any failure, or a late answer would pass for the next one."""
        try:
            yield time.monotonic() + self.timeout_s
        except TimeoutError:
            self.close()
            raise TimeoutError(f"no answer from {self.uri} within {self.timeout_s} s") from None
        except (OSError, WebSocketException) as error:
            self.close()
            raise ConnectionError(f"no connection to {self.uri}: {_one_line(error)}") from error
        except ValueError:
            self.close()
            raise

    def _receive(self, connection: ClientConnection, deadline: float) -> dict[str, Any]:
        message = connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        if isinstance(message, str):  # the server closes the connection after it, or is only busy
            raise RuntimeError(f"the server says: {_one_line(message)}")
        content = unpack(message)
        if not isinstance(content, dict):
            raise ValueError(f"the server sent a {type(content).__name__}, expected a map")
        return content

    def _check(self, answer: dict[str, Any]) -> None:
        """Raises `ValueError` unless the answer holds finite actions of the announced shape."""
        actions = answer.get("actions")
        if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f" or actions.ndim != 2:
            raise ValueError("the answer has no actions (T, A) of floating point numbers")
        announced = self._metadata.get("chunk_shape", list(actions.shape))
        if list(actions.shape) != announced:
            raise ValueError(f"the actions have shape {list(actions.shape)}, the server announced {announced}")
        if not np.isfinite(actions).all():
            raise ValueError("the actions have NaN or infinity")


class _Request(NamedTuple):
    episode: int
    step: int  # control step of the observation
    observed_s: float  # when it was made, on the clock of time.monotonic
    message: dict[str, Any]


class _Chunk(NamedTuple):
    request: _Request
    actions: np.ndarray  # (T, A); the first belongs to the step of the request


class RemoteController:
    """One action per control step from chunks that a server decides on, without waiting for the network.

    A thread of its own talks to the server. A chunk is asked for every `execution_horizon` steps, `ahead` steps before
    its first action is executed; while it is late the one at hand is executed on, up to `usable` actions. After that
    `step` gives None, `fault` says why, and the caller's safe action takes over until a chunk arrives. A request holds
    the whole history, the seed and the number of the decision, so a restarted server answers as the first would have.
    For a `Runtime` or your own loop. With `ahead=0` and answers in `wait_s` it acts as a `Controller`.

    Args:
        client: for this controller alone; it is connected here, with the errors of `Client.connect`.
        execution_horizon: control steps between two decisions; 0: the policy's own.
        ahead: control steps between the observation of a decision and its first executed action.
        usable: most actions of one chunk that are executed; 0: all.
        wait_s: longest wait of `step` for a chunk when it has no action; None: half a control period.

    Attributes:
        chunk_start: whether the last action was the first of a chunk.
        chunk_age_s: seconds since the observation was made from which the chunk of the last action was decided.
    """

    def __init__(
        self, client: Client, execution_horizon: int = 0, ahead: int = 1, usable: int = 0, wait_s: float | None = None
    ):
        self._client, self._policy = client, _described(client.connect())
        length = self._policy["chunk_shape"][0]
        self.execution_horizon = operator.index(execution_horizon) or self._policy["execution_horizon"]
        self.ahead, self.usable = operator.index(ahead), operator.index(usable) or length
        self.wait_s = self._policy["control_dt_s"] / 2 if wait_s is None else wait_s
        if not (0 <= self.ahead <= self.execution_horizon and 0 <= self.wait_s < math.inf):
            raise ValueError(f"ahead={self.ahead} must lie in 0..execution_horizon={self.execution_horizon}; {wait_s=}")
        if not self.ahead + self.execution_horizon <= self.usable <= length:
            raise ValueError(f"usable={self.usable} must lie in {self.ahead + self.execution_horizon}..{length}")
        self._changed = threading.Condition()  # guards all that the thread changes too
        self._episode, self._closed, self._error = 0, False, ""
        self.reset()
        self._thread = threading.Thread(target=self._talk, name="policy server", daemon=True)
        self._thread.start()

    @property
    def fault(self) -> str:
        """Why the last exchange with the server failed, or the last step has no action; empty if all is well."""
        return self._error or self._missing

    def reset(self, seed: int = 0, task: str = "", source: str = "") -> None:
        """Starts an episode; the seed, in [0, 2^32), fixes all its noise.

        A policy for several tasks, or of several data sets, is told which; the server refuses what it does not know.
        """
        if isinstance(seed, bool) or not 0 <= (seed := operator.index(seed)) < 2**32:  # NumPy's integers cannot be sent
            raise ValueError(f"seed={seed} must be an integer in [0, 2^32)")
        with self._changed:
            self._seed, self._missing = seed, ""
            self._told = {key: text for key, text in (("prompt", task), ("source", source)) if text}
            self.chunk_start, self.chunk_age_s = False, 0.0
            self._episode += 1
            self._step = self._due = self._decision = 0  # _due: step from which on the next chunk is asked for
            self._acted: np.ndarray | None = None  # for a policy that observes the previous action
            self._history: deque[dict[str, np.ndarray]] = deque(maxlen=self._policy["history"])
            self._chunk: _Chunk | None = None  # being executed
            self._arrived: _Chunk | None = None  # to be executed from `ahead` steps after its observation on
            self._wanted: _Request | None = None  # not yet seen by the thread
            self._asking = False  # the thread waits for an answer

    def step(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The action (A,) of this control step, or None where no chunk reaches (see `fault`).

        Returns within `wait_s`, and at once if an action is at hand or the server is known not to answer.

        Raises:
            ValueError: the observation lacks a feature, or has another one or one of another shape.
        """
        now_s = time.monotonic()
        step, self._step = self._step, self._step + 1  # time goes on even if the observation is wrong
        self._observe(observation)
        with self._changed:
            if step >= self._due and not self._asking:
                histories = {name: np.stack([each[name] for each in self._history]) for name in self._history[0]}
                message = {**histories, **self._told, "reset": self._seed, "decision": self._decision}
                self._wanted = _Request(self._episode, step, now_s, message)
                self._changed.notify_all()
            before = self._chunk
            if (action := self._action(step)) is None or self.ahead == 0:
                # Until a chunk is there, or none is to be expected: the last exchange failed, or nothing is asked.
                over = lambda: step < self._due or self._error or not (self._asking or self._wanted)  # noqa: E731
                self._changed.wait_for(over, self.wait_s)
                action = self._action(step)
            self._missing = f"no chunk reaches step {step}" if action is None else ""
            self.chunk_start = self._chunk is not before
            self.chunk_age_s = now_s - self._chunk.request.observed_s if self._chunk else 0.0
        self._acted = self._acted if action is None else np.array(action, np.float32)
        return action

    def skip(self, steps: int) -> None:
        """Lets so many control steps pass at which `step` was not called."""
        self._step += operator.index(steps)

    def close(self) -> None:
        """Ends the thread and the connection."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(2 * self._client.timeout_s + 1)

    def _observe(self, observation: Mapping[str, np.ndarray]) -> None:
        """Appends the observation to the history, which starts with copies of the first one."""
        features = self._policy["spec"]["observation"]
        own = [name for name, feature in features.items() if feature.get("kind") == "previous_action"]
        given = {
            name for name, feature in features.items() if feature.get("kind") in ("task", "source")
        }  # by the server
        sensed = {name: feature for name, feature in features.items() if name not in own and name not in given}
        if observation.keys() != sensed.keys():
            raise ValueError(f"the observation has {sorted(map(str, observation))}, expected {sorted(sensed)}")
        taken = {name: np.array(value) for name, value in observation.items()}
        for name, feature in sensed.items():
            if taken[name].shape != (expected := tuple(feature["shape"])):
                raise ValueError(f"observation {name!r} has shape {taken[name].shape}, expected {expected}")
        for name in own:  # at the first step the robot is taken to have been commanded to where it is
            known = [] if self._acted is not None else list(_named(taken, sensed))
            alike = [
                [value for each, value in known if each == dimension] for dimension in features[name].get("names") or ()
            ]
            first = [values[0] if len(values) == 1 else 0 for values in alike] or [0] * features[name]["shape"][0]
            taken[name] = np.array(first, np.float32) if self._acted is None else self._acted
        self._history.extend([taken] * (1 if self._history else self._policy["history"]))

    def _action(self, step: int) -> np.ndarray | None:
        """The step's action from the chunk at hand, which gives way to the next when that is due or it is used up."""
        over = self._chunk is None or step >= self._chunk.request.step + self.usable
        if self._arrived and (over or step >= self._arrived.request.step + self.ahead):
            self._chunk, self._arrived = self._arrived, None
            over = step >= self._chunk.request.step + self.usable
        return None if over or self._chunk is None else self._chunk.actions[step - self._chunk.request.step]

    def _talk(self) -> None:
        """The thread: sends what is wanted, keeps what comes, and pauses longer after every failure in a row."""
        pause_s = PAUSES_S[0]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None or self._closed)
                wanted, self._wanted, self._asking = self._wanted, None, True
            if self._closed or wanted is None:
                return self._client.close()
            actions, error = self._ask(wanted.message)
            with self._changed:
                self._asking, self._error = False, error
                if actions is not None and wanted.episode == self._episode:
                    self._arrived, self._due = _Chunk(wanted, actions), wanted.step + self.execution_horizon
                    self._decision += 1
                self._changed.notify_all()
                if error:
                    self._changed.wait_for(lambda: self._closed, pause_s)
            pause_s = min(2 * pause_s, PAUSES_S[1]) if error else PAUSES_S[0]

    def _ask(self, message: dict[str, Any]) -> tuple[np.ndarray | None, str]:
        """Actions and no error, or no actions and what went wrong."""
        try:
            if _described(self._client.connect()) != self._policy:
                raise ValueError("the server has another policy now; make a new controller for it")
            return self._client.infer(message)["actions"], ""
        except Exception as error:  # whatever a hostile server causes, the thread lives and the robot hears of it
            return None, f"{type(error).__name__}: {_one_line(error)}"


def _named(
    observation: Mapping[str, np.ndarray], features: Mapping[str, dict[str, Any]]
) -> Iterator[tuple[str, float]]:
    """Name and value of every dimension of a state that has a name."""
    for name, feature in features.items():
        if feature.get("kind", "state") == "state" and len(feature["shape"]) == 1:
            yield from zip(feature.get("names") or (), observation[name].tolist(), strict=False)


def _described(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a controller needs of the server's metadata; `ValueError` if it is not there."""
    names = ("spec", "chunk_shape", "history", "execution_horizon", "control_dt_s")
    try:
        policy = {name: metadata[name] for name in names}
        shapes = [list(feature["shape"]) for feature in policy["spec"]["observation"].values()]
        sizes = [*policy["chunk_shape"], policy["history"], policy["execution_horizon"], len(shapes)]
        if not (all(1 <= size <= MAX_ITEMS for size in sizes) and 0 < policy["control_dt_s"] < math.inf):
            raise ValueError("a number is out of range")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        text = f"{type(error).__name__}: {_one_line(error)}"
        raise ValueError(f"the server's metadata does not describe a flowhand policy; {text}") from error
    return policy
