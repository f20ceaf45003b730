"""One training in several processes, as `torchrun` starts them: what each computes, and how they stay together.

Every process has all demonstrations, the same weights and the same random numbers; of each batch it computes its own
rows. The gradients of all are summed in one buffer, so that after a step all have the same weights again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..draws import Share

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")
BEAT_S = 0.5  # between the signs of life of a process
LOOK_S = 3.0  # without one, after which a process is named as the one that was lost
ASK_EVERY = 10  # steps between agreements where asking waits for a GPU
_joined = 0  # how often this process has joined others


class LostProcessError(ValueError):
    """Another process of the training has ended or does not answer."""


class OneProcess:
    """A training that one process does alone."""

    rank, count = 0, 1
    lost = False  # whether another one was lost
    first = True  # whether this is the process that collects, saves, evaluates and speaks

    def part(self, batch_size: int) -> slice:
        """The rows of a batch that this process computes."""
        return slice(None)

    def share(self, generator: torch.Generator, batch_size: int) -> torch.Generator:
        """What the loss of those rows draws its random numbers with."""
        return generator

    def combine(self, parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
        """Gives the parameters the gradient of the whole batch; returns the loss of the whole batch."""
        return loss

    def summed(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return value

    def agree(self, number: int, step: int) -> int:
        """The largest of the numbers that the processes ask with; on a GPU it may be known some steps later."""
        return number

    def in_turn(self, work: Callable[[], T]) -> T:
        """Does the work in the first process, and when that is done in the others, which find what it has left."""
        return work()

    def alone(self, work: Callable[[], T]) -> T | None:
        """Does the work in the first process, while the others wait for it; they get None."""
        return work()

    def require_same(self, **what: float) -> None:
        """Raises `ValueError` naming the first of these numbers that is another one in another process."""

    def require_shared(self, generator: torch.Generator) -> None:
        """Raises `ValueError` if a loss took its numbers or its mean from the rows of this process alone."""

    def missing(self) -> str:
        """Which processes give no sign of life, in words."""
        return ""


class Processes(OneProcess):
    """One of several processes of a training.

    Args:
        rank: its number.
        count: of the processes.
        store: what all of them read and write.
        device: where this one computes.
        timeout_s: how long it waits for another one.
    """

    def __init__(self, rank: int, count: int, store: Store, device: torch.device, timeout_s: float):
        self.rank, self.count, self.first = rank, count, rank == 0
        self.device, self.timeout_s = device, timeout_s
        self._store, self._turns = store, 0
        self._flat = torch.zeros(0, device=device)
        self._views: list[Tensor] = []
        self._looked = False
        self._stopping = threading.Event()
        beating = cast(Any, store).clone()  # a connection of its own: one that waits holds up all that share it
        self._beats = threading.Thread(target=self._beat, args=(beating,), daemon=True)
        self._beats.start()

    def part(self, batch_size: int) -> slice:
        """Equal parts, or with one row more for some."""
        if batch_size < self.count:
            raise ValueError(f"train.batch_size={batch_size} gives {self.count} processes no window each; raise it")
        return slice(self.rank * batch_size // self.count, (self.rank + 1) * batch_size // self.count)

    def share(self, generator: torch.Generator, batch_size: int) -> torch.Generator:
        """One that draws the numbers of the whole batch and keeps those of this part."""
        return Share.of(generator, self.part(batch_size), batch_size, self.summed)

    def summed(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        total = value.clone()
        with self._told():
            dist.all_reduce(total)
        return total

    def combine(self, parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
        """The sum of all gradients, each of which is that of a part of the mean, and of all losses."""
        given = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in given if parameter.grad is not None]
        if [view.shape for view in self._views] != [gradient.shape for gradient in gradients]:
            self._make_room(parameters, gradients)
        torch._foreach_copy_(self._views, gradients)  # pyright: ignore[reportPrivateImportUsage]
        self._flat[-1] = loss.detach()
        with self._told():
            dist.all_reduce(self._flat)
        for parameter, view in zip(given, self._views, strict=True):
            parameter.grad = view
        return self._flat[-1].clone()

    def _make_room(self, parameters: Sequence[Tensor], gradients: list[Tensor]) -> None:
        """The buffer for these gradients, which must be those of the same parameters in every process."""
        places = [at for at, parameter in enumerate(parameters) if parameter.grad is not None]
        self.require_same(gradients=float(sum((at + 1) * (at + 2) for at in places)))
        sizes = [gradient.numel() for gradient in gradients]
        self._flat = torch.zeros(sum(sizes) + 1, device=self.device)
        parts = self._flat[:-1].split(sizes)
        self._views = [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]

    def require_shared(self, generator: torch.Generator) -> None:
        """Looks at the first loss; a component of the user's own may not know of several processes."""
        if self._looked or not isinstance(generator, Share):
            return
        self._looked = True
        if not torch.equal(generator.get_state(), torch.Generator(generator.device).get_state()):
            raise ValueError(
                "a part of the policy draws random numbers by itself, and they differ with the number of processes; "
                "draw them with policies.draws.drawn"
            )
        if not generator.asked:
            raise ValueError(
                "the head's loss is a mean over the rows of one process; give masked_mean its generator, or train on "
                "one device"
            )

    def agree(self, number: int, step: int) -> int:
        """Asked at every step on a CPU, and at every tenth where the answer waits for a GPU."""
        if self.device.type == "cuda" and step % ASK_EVERY:
            return 0
        asked = torch.tensor(number, device=self.device)
        with self._told():
            dist.all_reduce(asked, dist.ReduceOp.MAX)
        return int(asked.item())

    def require_same(self, **what: float) -> None:
        """Numbers in double precision, so that they are whole numbers up to 2^53."""
        mine = torch.tensor(list(what.values()), dtype=torch.float64, device=self.device)
        bounds = torch.stack([mine, -mine])
        with self._told():
            dist.all_reduce(bounds, dist.ReduceOp.MAX)
        for name, most, least in zip(what, bounds[0].tolist(), (-bounds[1]).tolist(), strict=True):
            if most != least:
                raise ValueError(
                    f"the {self.count} processes have different {name}: from {least:.17g} to {most:.17g}; they need "
                    "the same demonstrations, checkpoint and kind of machine"
                )

    def in_turn(self, work: Callable[[], T]) -> T:
        """Each waits for the others as long as these live, however long their work takes."""
        result = self.alone(work)
        turn = self._turns
        if not self.first:
            result = work()
            self._store.set(f"done/{turn}/{self.rank}", "1")
        for rank in range(1, self.count) if self.first else ():
            self._wait(f"done/{turn}/{rank}", rank)
        return cast(T, result)

    def alone(self, work: Callable[[], T]) -> T | None:
        """The others wait as long as the first one lives."""
        self._turns += 1
        done = f"done/{self._turns}"
        if self.first:
            result = work()
            self._store.set(done, "1")
            return result
        self._wait(done, 0)
        return None

    def _wait(self, key: str, rank: int) -> None:
        """Until a process has set the key, as long as it gives signs of life."""
        with self._told():
            beat, since = b"", time.monotonic()
            while not self._store.check([key]):
                if self._store.check(["failed"]):
                    raise LostProcessError("another process has failed")
                now = self._store.get(f"beat/{rank}")
                if now != beat:
                    beat, since = now, time.monotonic()
                if time.monotonic() - since > self.timeout_s:
                    raise LostProcessError(f"process {rank} has given no sign of life for {self.timeout_s:g} s")
                time.sleep(0.05)

    def missing(self) -> str:
        """Those whose signs of life have stopped."""
        others = [rank for rank in range(self.count) if rank != self.rank]
        try:
            before = [self._store.get(f"beat/{rank}") for rank in others]
            time.sleep(LOOK_S if self.first else 2 * LOOK_S)  # the first one knows what was saved, and speaks first
            gone = [r for r, beat in zip(others, before, strict=True) if self._store.get(f"beat/{r}") == beat]
        except RuntimeError:  # who keeps the store is gone itself
            gone = [0]
        return f"process {', '.join(map(str, gone))}" if gone else "a process"

    def speaks(self) -> bool:
        """Whether this process is the first that has something to say of a failure."""
        try:
            return self._store.compare_set("failed", "", str(self.rank)).decode() == str(self.rank)
        except RuntimeError:
            return True

    def leave(self) -> None:
        """Ends the connections."""
        self._stopping.set()
        self._beats.join(timeout=2 * BEAT_S)
        with suppress(RuntimeError):
            dist.destroy_process_group()

    def _beat(self, store: Store) -> None:
        beats = 0
        with suppress(RuntimeError):  # the store is gone, which the training finds out by itself
            while not self._stopping.is_set():
                beats += 1
                store.set(f"beat/{self.rank}", str(beats))
                self._stopping.wait(BEAT_S)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns what torch says of a broken connection into `LostProcessError`."""
        try:
            yield
        except RuntimeError as error:
            self.lost = True
            raise LostProcessError(
                f"the connection to another process broke: {str(error).splitlines()[0][:200]}"
            ) from error
        except LostProcessError:
            self.lost = True
            raise


def started_by(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Rank and number of the processes that `torchrun` has started; (0, 1) without it."""
    count = int(environment.get("WORLD_SIZE", "1")) if "RANK" in environment else 1
    return (int(environment["RANK"]), count) if count > 1 else (0, 1)


def card_of(name: str, environment: Mapping[str, str] = os.environ, cards: int | None = None) -> str:
    """The device of one of several processes: `auto` and `cuda` give each a card of its own, as far as there are any.

    Args:
        name: as it is configured.
        environment: of the process.
        cards: on this machine; None: as many as torch sees.
    """
    cards = torch.cuda.device_count() if cards is None else cards
    return f"cuda:{int(environment['LOCAL_RANK']) % cards}" if name in ("auto", "cuda") and cards else name


@contextmanager
def joined(device: torch.device, timeout_s: float) -> Iterator[OneProcess]:
    """The processes that `torchrun` has started, of which one speaks when all must end; else this one alone.

    Args:
        device: where this process computes.
        timeout_s: how long it waits for another one.
    """
    rank, count = started_by()
    if count == 1:
        yield OneProcess()
        return
    store = _store(rank, timeout_s)
    # nccl wants a card for each process
    enough = device.type == "cuda" and torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own_card = enough and device.index == int(os.environ["LOCAL_RANK"])
    options: dict[str, Any] = {"device_id": device} if own_card else {}
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if own_card else "gloo",
        store=store,
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=timeout_s),
        **options,
    )
    processes = Processes(rank, count, store, device, timeout_s)
    try:
        yield processes
    except Exception:
        if processes.speaks():
            raise
        raise SystemExit(1) from None
    finally:
        processes.leave()


def _store(rank: int, timeout_s: float) -> Store:
    """What the processes read and write; `torchrun` keeps it, or the first process."""
    from torch._C._distributed_c10d import PrefixStore, TCPStore  # not in every build of torch

    global _joined
    _joined += 1
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    wait = timedelta(seconds=timeout_s)
    store = TCPStore(host, port, is_master=rank == 0 and not kept, timeout=wait, wait_for_workers=False)
    return PrefixStore(f"flowhand/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_joined}", store)
