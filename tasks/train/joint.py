"""Several processes that learn together: see `tasks.train.crew`. Torch's collectives, over gloo or NCCL."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, cast

import torch
import torch.distributed as dist
from safetensors.torch import load
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce  # type: ignore[attr-defined]
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from models.errors import RecipeError, TrainingError
from tasks.imaging.device import is_out_of_memory
from tasks.train.checkpoint import Checkpoint, packed
from tasks.train.crew import Crew, Logits, Result

_PATIENCE = timedelta(hours=12)  # while the first validates; a process that has died is noticed at once
_Room = tuple[Tensor, list[Tensor], Tensor]


class BatchTooLargeError(TrainingError):
    """One of the processes has run out of memory where the others cannot follow: with a batch of `count`."""

    def __init__(self, count: int) -> None:
        self.count: Final = count
        super().__init__(
            "the memory of one of the processes does not suffice for its part of the batch",
            where="train",
            hint="choose a smaller batch_size or patch_size, or fewer processes on each device",
            reason="batch-too-large",
        )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.count,)


@dataclass(frozen=True)
class Joint(Crew):
    """One of several processes. `control` carries plain values between CPUs, so that no GPU is waited for."""

    control: dist.ProcessGroup | None = None

    @classmethod
    def assembled(cls, device: torch.device, folder: Path | None = None, most: int | None = None) -> Joint:
        """Meet the others: gloo on CPUs, NCCL on GPUs, of which each takes its own. `most`: see `Crew`.

        Where torchrun's environment says; or by a file in `folder`, where all are on this host. torch's own meeting
        point listens on every interface, and believes whoever speaks to it.
        """
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl" if device.type == "cuda" else "gloo"
        if folder is None:
            dist.init_process_group(backend)
        else:
            rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            round_ = f"{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
            store = dist.FileStore(str(folder / f"meeting-{round_}"), size)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), most, control)

    def check(self, batch: int) -> None:
        """Raises RecipeError where there are more processes than elements in a batch."""
        if self.size > batch:
            raise RecipeError(
                f"a batch of {batch} cannot be shared out among {self.size} processes",
                where="train.batch_size",
                hint=f"start {batch} processes or fewer, or write batch_size = {self.size}",
            )

    def wrapped(self, network: nn.Module) -> nn.Module:
        """With gradients added up, and batch statistics over all processes."""
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.__class__ = JointBatchNorm  # its parameters stay the objects that the optimiser holds
        # A part that is left out by chance (stochastic depth) is left out in one process and not in another.
        return DistributedDataParallel(
            network, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
        )

    def meet_within(self, network: nn.Module) -> bool:
        """As the base says: batch norms add up."""
        return any(isinstance(module, JointBatchNorm) for module in network.modules())

    def whole(self, logits: Logits, count: int) -> Logits:
        """As the base says; of each resolution."""
        heads = [logits] if isinstance(logits, Tensor) else logits
        # All have their room before any begins to wait for the others.
        rooms = self.together(lambda: [self._room(head, count) for head in heads])
        whole = [self._gathered(head, room) for head, room in zip(heads, rooms, strict=True)]
        return whole[0] if isinstance(logits, Tensor) else whole

    def _room(self, own: Tensor, count: int) -> _Room:
        """What is sent, what the processes sent, and all of it."""
        sent = own.new_zeros((-(-count // self.size), *own.shape[1:]))
        sent[: len(own)] = own.detach()
        return sent, [torch.empty_like(sent) for _ in range(self.size)], own.new_empty((count, *own.shape[1:]))

    def _gathered(self, own: Tensor, room: _Room) -> Tensor:
        sent, parts, gathered = room
        # As bytes: not every backend knows every type of number.
        dist.all_gather([part.view(torch.uint8) for part in parts], sent.view(torch.uint8))
        for rank, part in enumerate(parts):
            place = gathered[rank :: self.size]
            place.copy_(part[: len(place)])
        gathered[self.rank :: self.size] = own
        return gathered

    def backward(self, loss: Tensor, count: int) -> None:
        """The gradients are averaged over the processes, each of which has only those of its own elements."""
        # The others are in the middle of adding up: they cannot halve their batch together.
        self.for_good(lambda: (loss * self.size).backward(), count)

    def for_good(self, work: Callable[[], Result], count: int) -> Result:
        """As the base says. Raises BatchTooLargeError."""
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise BatchTooLargeError(count) from error

    def drawing(self, seed: int, step: int) -> None:
        """From (seed, step, rank)."""
        torch.manual_seed((seed * 1_000_003 + step * 1_009 + self.rank) % 2**63)

    def together(self, work: Callable[[], Result]) -> Result:
        """As the base says."""
        result, short = None, False
        try:
            result = work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            short = True
        flag = torch.tensor([int(short)])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)
        if flag.item():
            raise MemoryError("out of memory in one of the processes")
        return cast(Result, result)

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """As the base says."""
        both = torch.tensor([float(stop), seconds if self.leads else -1.0], dtype=torch.float64)
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self.control)
        return bool(both[0]), float(both[1])

    def told(self, value: Any) -> Any:
        """As the base says."""
        return json.loads(self._sent(json.dumps(value).encode() if self.leads else b""))

    def told_checkpoint(self, checkpoint: Checkpoint | None) -> Checkpoint | None:
        """As the base says: so only the leader needs the folder."""
        about = self.told(None if checkpoint is None else [checkpoint.step, checkpoint.values])
        if about is None:
            return None
        tensors = self._sent(packed(checkpoint) if checkpoint is not None else b"")
        return Checkpoint(about[0], load(tensors), about[1])

    def _sent(self, content: bytes) -> bytes:
        """The leader's bytes."""
        length = torch.tensor([len(content)])
        dist.broadcast(length, 0, group=self.control)
        buffer = torch.frombuffer(bytearray(content or bytes(int(length))), dtype=torch.uint8)
        dist.broadcast(buffer, 0, group=self.control)
        return buffer.numpy().tobytes()


class JointBatchNorm(_BatchNorm):
    """A batch norm over the elements of all processes, on any device (nn.SyncBatchNorm knows GPUs alone)."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → the same shape."""
        if not self.training:
            return super().forward(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        wide = x.float()
        sums = torch.cat((wide.sum(axes), wide.new_tensor([x.numel() / x.shape[1]])))
        sums = all_reduce(sums)
        count = sums[-1].detach()
        if count == 1:  # a single element has no statistics of its own
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        shape = (1, -1, *[1] * (x.ndim - 2))
        apart = wide - (sums[:-1] / count).view(shape)
        variance = all_reduce(apart.square().sum(axes)) / count
        self._remember(sums[:-1].detach() / count, variance.detach() * count / (count - 1))
        normal = apart * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    def _check_input_dim(self, x: Tensor) -> None:
        """Of any dimensions."""
