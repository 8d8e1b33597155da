"""CUDA graphs without CUDA: what ``CapturedArm`` uses of ``torch.cuda``, on the CPU, with the rules of a capture.

A capture records the ATen operations of a step and changes nothing; a replay runs them again on the same tensors, with the same
Python numbers. So a learning rate, an index or a batch size that was baked in, a buffer that was replaced instead of written
to, a weight that was not put back: all give other losses than the eager arm. After a replay every tensor that was made in the
capture holds rubbish, as in a pool that another graph uses. What reads the host's memory from the device, or the device's from
the host, raises ``HostRead``, as it would on a GPU. Streams run at once what they are given, but count it as under way until
somebody waits.

What this cannot show: backward kernels, cuDNN, memory and time of a GPU.
"""

from contextlib import contextmanager

import torch
import torch._dynamo  # it looks at torch.cuda's streams when it is imported, so before they are replaced
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class HostRead(RuntimeError):
    """What a GPU would refuse in the middle of a capture."""


def _packets(*names):
    return {getattr(aten, name) for name in names if hasattr(aten, name)}


# They wait for the device: their result, or its shape, is a number that the host needs.
SYNCHRONISE = _packets(
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "histc", "allclose", "argwhere",
)  # fmt: skip
# torch.tensor(...) is a copy from pageable memory of the host; with device="meta" no operation tells, so look at the call.
HOST_CONSTANTS = _packets("lift_fresh", "lift_fresh_copy", "lift")
FROM_HOST = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.frombuffer}
UNINITIALISED = _packets("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
INDEXING = _packets("index", "index_put", "index_put_", "_index_put_impl_")


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _storage(tensor):
    return tensor.untyped_storage()._cdata


class Rules(TorchDispatchMode):
    """Raise HostRead for what a capture cannot hold."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if packet in SYNCHRONISE:
            raise HostRead(f"{func} makes the host wait for the device")
        if packet in HOST_CONSTANTS:
            raise HostRead(f"{func}: a constant of the host is copied to the device")
        if packet in INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            raise HostRead(f"{func} with a mask counts on the host what it picks")
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        return func(*args, **kwargs)


class NoConstants(TorchFunctionMode):
    """Raise HostRead where Python makes a tensor of numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FROM_HOST:
            raise HostRead(f"torch.{func.__name__}: a constant of the host is copied to the device")
        return func(*args, **(kwargs or {}))


class OneDevice(Rules):
    """For meta tensors, which stand for the device: whatever else is a tensor lies on the host."""

    def __init__(self):
        super().__init__()
        self.seen = set()
        self.no_constants = NoConstants()

    def __enter__(self):
        self.no_constants.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.no_constants.__exit__(*error)

    def run(self, func, args, kwargs):
        self.seen.add(str(func))
        if func.overloadpacket is aten._fused_sgd_:  # it has no meta kernel: check what the one for CUDA checks
            return _check_fused_sgd(func, args, kwargs)
        if torch.device(kwargs.get("device") or "meta").type != "meta":
            raise HostRead(f"{func} makes or wants a tensor of the host: {kwargs['device']}")
        result = func(*args, **kwargs)
        for tensor in _tensors((args, kwargs, result)):
            if tensor.device.type != "meta":
                raise HostRead(f"{func} takes or gives a tensor of the host, of shape {tuple(tensor.shape)}")
        return result


def _check_fused_sgd(func, args, kwargs):
    given = dict(zip([a.name for a in func._schema.arguments], args, strict=False)) | kwargs
    lists = [given["self"], given["grads"], given["momentum_buffer_list"]]
    if func._overloadname != "tensor_lr" or given["lr"].dtype != torch.float32:
        raise HostRead("the learning rate must be a float32 tensor of the device: a number would be baked in")
    if given["is_first_step"]:
        raise HostRead("momentum buffers that start in a capture start again at every replay")
    for alike in zip(*[some for some in lists if some], strict=True):
        strides = [[stride for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1] for t in alike]
        if len({tuple(t.shape) for t in alike}) > 1 or strides.count(strides[0]) != len(strides):
            raise HostRead(f"fused SGD wants alike strides, not {strides}")


class Recorder(Rules):
    """Records; what lay outside is as before at the end."""

    def __init__(self, graph):
        super().__init__()
        self.graph, self.inside, self.before = graph, {}, {}

    def run(self, func, args, kwargs):
        for tensor in _tensors((args, kwargs)):
            key = _storage(tensor)
            if key not in self.inside and key not in self.before:
                self.before[key] = (tensor.untyped_storage(), tensor.untyped_storage().clone())
        result = func(*args, **kwargs)
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        fresh = [tensor for tensor in _tensors(result) if _storage(tensor) not in given]
        self.inside |= {_storage(tensor): tensor for tensor in fresh}
        # A view needs no work at a replay. Batch norm hides that it writes its running statistics, yet gives new tensors.
        if (fresh or func._schema.is_mutable) and func.overloadpacket not in UNINITIALISED:
            self.graph.work.append((func, args, kwargs, result))
        self.graph.keep.append((args, kwargs, result))
        return result

    def __exit__(self, *error):
        super().__exit__(*error)
        for where, what in self.before.values():
            where.copy_(what)
        self.graph.owned, self.graph.captured = list(self.inside.values()), error[0] is None
        self.graph.spoil()


class Stream:
    """Stands for torch.cuda.Stream, and for an event on it: what was launched before it has run once somebody waits for it."""

    def __init__(self, device=None):
        self.launched = self.finished = 0

    def wait_stream(self, other):
        pass

    def record_event(self):
        return Event(self, self.launched)


class Event:
    """Stands for torch.cuda.Event."""

    def __init__(self, stream, launched):
        self.stream, self.launched = stream, launched

    def synchronize(self):
        self.stream.finished = max(self.stream.finished, self.launched)


class Device:
    """A GPU: its streams, in the order of its launches, and what was asked of its captures."""

    def __init__(self):
        self.current = self.default = Stream()
        self.launches, self.most_in_flight, self.options = [], 0, []

    def in_flight(self):
        return sum(stream.launched - stream.finished for stream in dict.fromkeys(self.launches))

    def synchronize(self, device=None):
        for stream in self.launches:
            stream.finished = stream.launched

    def set_stream(self, stream):
        self.current = stream

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, pool=None, stream=None, **options):
        self.options.append(options)
        before, self.current, graph.device = self.current, stream, self
        try:
            with Recorder(graph):
                yield
        except RuntimeError:  # the stream stays, and a second error hides the first
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        self.current = before

    def launch(self):
        stream = self.current
        stream.launched += 1
        self.launches.append(stream)
        self.most_in_flight = max(self.most_in_flight, stream.launched - stream.finished)


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self):
        self.work, self.keep, self.owned, self.captured, self.replays, self.device = [], [], [], False, 0, None

    def pool(self):
        assert self.captured, "pool() of a graph that was not captured"
        return (0, 1)

    def replay(self):
        assert self.captured, "replay() of a graph that was not captured"
        self.replays += 1
        self.device.launch()
        with torch.no_grad():
            for func, args, kwargs, result in self.work:
                again = func(*args, **kwargs)
                given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
                for old, new in zip(_tensors(result), _tensors(again), strict=True):
                    if _storage(old) not in given:
                        old.copy_(new)
        self.spoil()

    def spoil(self):
        with torch.no_grad():
            for tensor in self.owned:
                flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                flat.fill_(torch.nan if flat.is_floating_point() else True if flat.dtype == torch.bool else 241)


@contextmanager
def _nothing(*args):
    yield


def install(monkeypatch):
    """Let ``torch.cuda`` be this module, as far as CapturedArm goes; return the device that it stands for."""
    device = Device()
    for name, stand_in in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": device.graph,
        "stream": device.stream,
        "device": _nothing,
        "current_stream": lambda _=None: device.current,
        "set_stream": device.set_stream,
        "synchronize": device.synchronize,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return device
