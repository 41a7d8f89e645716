"""A training's step with compiled blocks, replayed on a GPU as one CUDA graph.

Compiled are the blocks of a network, each with its gradient, by ``torch.compile``: passes over
memory become one (norm, SiLU, dropout, casts, sums, biases), and few kinds of blocks are compiled
in a minute where a whole network takes many. The graph then holds all of a step that follows its
random draws, up to the optimiser: a GPU gets hundreds of launches as one. Draws go into buffers
that stay in place; dropout draws inside, from a generator that is seeded before each step.

Without a :class:`Compilation` a step is a plain call, the reference for all of this.

Reference:
    "Reducing torch.compile cold start compilation time with regional compilation" and "CUDA
    graphs, whole-network capture" of PyTorch's documentation.
"""

import importlib.util
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor, nn, optim

from dsd.model.checkpoint import first_line
from dsd.model.networks.block_call import BlockCall, plain_call
from dsd.training.distributed import DistributedContext
from dsd.utils.errors import DsdError

__all__ = ["Compilation", "CompiledStep", "capture_obstacle", "missing_compiler", "tree_map"]

InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")
TreeT = TypeVar("TreeT")

_WARM_UPS = 3
"""Real steps before one is captured: they choose kernels and make the optimiser's moments."""

_MOST_KINDS = 256
"""Kinds of blocks and of their arguments; torch's 8 would leave a network's later ones plain."""

_KEPT = 0.8
"""Of what a compiler would keep for gradients. Below 1 it keeps what convolutions and products
made, and computes again what a pass over memory makes of that: half the memory for little time."""

_LEAST_CAPABILITY = (7, 0)
"""Triton's, the compiler of GPUs."""


@final
@dataclass(frozen=True)
class Compilation:
    """The wish to compile a training.

    Args:
        say: Prints a line: that it compiles, how many seconds it took, why a step stays plain.
        check: Called now and then while it compiles; may raise a :class:`DsdError` to end it.
    """

    say: Callable[[str], None]
    check: Callable[[], None] = lambda: None


def missing_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled for ``device``, in words; None if it can be."""
    if not any(map(shutil.which, ("cc", "gcc", "g++", "clang"))):
        return "there is no C compiler (cc, gcc or clang)"
    if device.type != "cuda":
        return None
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.cuda is not None and capability < _LEAST_CAPABILITY:
        version = ".".join(map(str, capability))
        return f"{torch.cuda.get_device_name(device)} is too old (compute capability {version})"
    return None


def capture_obstacle(distributed: DistributedContext, *, recomputes: bool) -> str | None:
    """Why a step cannot be one CUDA graph, in words; None if it can be.

    Args:
        distributed: Its processes.
        recomputes: Whether it has activation checkpointing, which sets the random state back in
            the middle of it.
    """
    if distributed.world_size > 1:
        return "several processes sum gradients in the middle of them"
    return "they have activation checkpointing" if recomputes else None


@final
class CompiledStep(Generic[InputT, OutputT]):
    """The part of a training's step that follows its random draws.

    Args:
        work: That part. From the same tensors it does the same, and it changes only weights,
            their gradients and moments.
        networks: Modules with the networks that it calls.
        optimizers: Optimizers that it uses.
        compilation: What was asked for; None calls ``work`` as it is.
        obstacle: Why a step cannot be captured, where that is known beforehand.
        device: Where it computes. A CPU has no graphs; there all else is done alike.
    """

    def __init__(
        self,
        work: Callable[[InputT], OutputT],
        *,
        networks: Sequence[nn.Module],
        optimizers: Sequence[optim.Optimizer],
        compilation: Compilation | None,
        obstacle: str | None,
        device: torch.device,
    ) -> None:
        self._work = work
        self._networks = networks
        self._optimizers = optimizers
        self._compilation = compilation
        self._compiles = self._captures = compilation is not None
        self._obstacle = obstacle
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._steps = 0
        self._buffers: InputT | None = None
        self._replay: Callable[[], OutputT] | None = None

    def compile(self, dry_run: Callable[[], None]) -> None:
        """Compile the blocks that ``dry_run`` calls, if that is asked for and not done yet.

        A step that fails half-way would have moved some weights, so the first calls are those of
        a step that moves none.
        """
        if self._compilation is None or not self._compiles:
            return
        self._compiles, say = False, self._compilation.say
        say(f"compiling the network for {_name(self._device)}; the first time takes a minute")
        started = time.monotonic()
        try:
            _set_call(self._networks, _watched(self._compilation.check))
            dry_run()
        except torch.OutOfMemoryError:
            self._compiles = True  # the caller tries a smaller batch
            raise
        except DsdError:
            raise
        except Exception as error:
            _set_call(self._networks, plain_call)
            say(f"the network is not compiled, which is slower: {first_line(error)}")
        else:
            _set_call(self._networks, _compiled_call())
            say(f"compiled in {time.monotonic() - started:.0f} s")
        finally:
            self._forget_gradients()

    def __call__(self, inputs: InputT) -> OutputT:
        """Do the work, or replay it.

        Args:
            inputs: Tensors, in tuples, lists and dataclasses; of the same shapes in each step.

        Returns:
            Copies of the tensors that the work returns; the next step does not change them.
        """
        if self._compilation is None or not self._captures:
            return self._work(inputs)
        if self._obstacle is not None:
            return self._uncaptured(inputs, self._obstacle)
        self._steps += 1
        if self._steps <= _WARM_UPS:
            return self._warm_up(inputs)
        if self._replay is None:
            try:
                self._capture(inputs)
            except Exception as error:
                return self._uncaptured(inputs, first_line(error))
        assert self._replay is not None
        tree_map(Tensor.copy_, self._buffers, inputs)
        return tree_map(Tensor.clone, self._replay())

    def _warm_up(self, inputs: InputT) -> OutputT:
        """Do the work on the stream of the capture, so that nothing later waits for another."""
        if self._stream is None:
            return self._work(inputs)
        here, there = torch.cuda.current_stream(), self._stream
        there.wait_stream(here)
        with torch.cuda.stream(there):
            outputs = self._work(inputs)
        here.wait_stream(there)
        return outputs

    def _capture(self, inputs: InputT) -> None:
        """Record the work on buffers, with step sizes as tensors; nothing is computed yet."""
        self._buffers = buffers = tree_map(Tensor.clone, inputs)
        self._forget_gradients()
        for group in self._groups():
            group["capturable"] = True
            group["lr"] = torch.tensor(group["lr"], device=self._device)
        if self._stream is None:
            self._replay = lambda: self._work(buffers)
            return
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as one that writes a state, may go on using the GPU.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            outputs = self._work(buffers)

        def replay() -> OutputT:
            graph.replay()
            return outputs

        self._replay = replay

    def _uncaptured(self, inputs: InputT, why: str) -> OutputT:
        """Do the work, in this step and all later ones."""
        assert self._compilation is not None
        self._compilation.say(f"steps are not captured as a CUDA graph: {why}")
        self._captures, self._buffers = False, None
        self._forget_gradients()
        for group in self._groups():
            group["capturable"] = False
            group["lr"] = float(group["lr"])
        return self._work(inputs)

    def _forget_gradients(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _groups(self) -> Iterator[dict[str, Any]]:
        return (group for optimizer in self._optimizers for group in optimizer.param_groups)


def _set_call(networks: Iterable[nn.Module], call: BlockCall) -> None:
    """Let the networks that have the attribute ``call_block`` use this one."""
    for network in (module for root in networks for module in root.modules()):
        if hasattr(network, "call_block"):
            setattr(network, "call_block", call)  # noqa: B010 - nn.Module types no functions


def _watched(check: Callable[[], None]) -> BlockCall:
    """Compiled calls with ``check`` before each."""
    compiled = _compiled_call()

    def call(block: Callable[..., Tensor], *inputs: nn.Module | Tensor | None) -> Tensor:
        check()
        return compiled(block, *inputs)

    return call


@cache
def _compiled_call() -> BlockCall:
    """One function for all blocks of all networks, so that equal kinds are compiled once."""
    torch._dynamo.config.recompile_limit = _MOST_KINDS
    torch._functorch.config.activation_memory_budget = _KEPT
    # Weights have the layout that suits the device; the compiler must not choose another one.
    return torch.compile(plain_call, dynamic=False, options={"layout_optimization": False})


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"


def tree_map(function: Callable[..., Tensor], tree: TreeT, *others: Any) -> TreeT:  # noqa: ANN401 - a tree of any kind
    """Apply ``function`` to each tensor of a tree and those at its place in ``others``.

    Args:
        function: Of tensors.
        tree: Tensors, in tuples, lists and dataclasses; None stays None.
        others: Trees of the same form.

    Returns:
        A tree of that form with the results.
    """
    result: Any = tree
    if isinstance(tree, Tensor):
        result = function(tree, *others)
    elif isinstance(tree, tuple | list):
        parts = [tree_map(function, *each) for each in zip(tree, *others, strict=True)]
        result = type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    elif is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in fields(tree)]
        members = {
            name: tree_map(function, *(getattr(each, name) for each in (tree, *others)))
            for name in names
        }
        result = replace(tree, **members)
    return result  # type: ignore[no-any-return]
