"""Write a file in each format, and read or run it again for the check."""
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..utils.arguments import check_choice
from ..utils.errors import UserError
from .failure_cause import blame

Run = Callable[..., list[Tensor]]  # of a graph's inputs, in their order
# Format -> the end of its files' names, and the packages that it needs.
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    'pth': ('.pth', ()),
    'safetensors': ('.safetensors', ('safetensors', )),
    'onnx': ('.onnx', ('onnx', 'onnxscript', 'onnxruntime')),
    'torchscript': ('.pt', ()),
    'pt2': ('.pt2', ())}
WEIGHTS = ('pth', 'safetensors')
ANY_SIZE = ('onnx', 'pt2')  # whose shapes can be symbols
_ABOUT = 'sct_mm.json'  # where a graph's metadata holds its description


class Graph(NamedTuple):
    """The network that becomes a graph, and what the graph is to be.

    Args:
        net: a module from images to a tuple of tensors.
        example: images (N, ..., H, W) for the trace, N > 1.
        divisor: N is always dynamic. 0: H and W are fixed; otherwise they are
            dynamic, and multiples of this number.
        names: the names of the outputs.
        description: what the file says of its images.
        size: that of the test in pixels, an int64 of shape (), if it is an
            input of its own, named 'size'.
    """
    net: nn.Module
    example: Tensor
    divisor: int
    names: list[str]
    description: dict
    size: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The inputs for the trace, by name."""
        images = dict(input=self.example)
        return images if self.size is None else dict(images, size=self.size)

    def dynamic(self) -> tuple[dict, ...]:
        """The dynamic dimensions of each input, as torch's exporters take
        them."""
        dim = torch.export.Dim
        width = self.example.dim() - 1
        edges = {}
        if self.divisor == 1:  # torch finds out what the edges must be
            edges = {width - 1: dim.AUTO, width: dim.AUTO}
        elif self.divisor:
            edges = {width - 1: self.divisor * dim('height'),
                     width: self.divisor * dim('width')}
        images = {0: dim('batch'), **edges}
        return (images, ) if self.size is None else (images, {})


def check_format(kind: str) -> None:
    """Refuse a format that is unknown, or whose packages are missing.

    Raises:
        ValueError: for an unknown one.
        UserError: naming the package.
    """
    check_choice('format', kind, list(FORMATS))
    missing = [name for name in FORMATS[kind][1] if not find_spec(name)]
    if missing:
        raise UserError(f'The format {kind!r} needs {missing[0]}, but it is '
                        "not installed. Run pip install 'sct_mm[export]'.")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings of torch's exporters about themselves and about
    what a trace may have missed, which the check on real images finds out."""
    with warnings.catch_warnings(), torch.no_grad():
        for kind in (FutureWarning, DeprecationWarning,
                     torch.jit.TracerWarning):
            warnings.simplefilter('ignore', kind)
        warnings.filterwarnings('ignore', 'The given buffer is not writable')
        # mmdet's, about properties that a trace looks at.
        warnings.filterwarnings('ignore', 'DeprecationWarning: ')
        yield


class _PoolOfOne(TorchFunctionMode):
    """Replaces a max pooling over one element by the slice that is equal.

    mmdet's FPN makes its last map by such a pooling, at which torch.export
    guards the graph against all shapes but the example's (torch 2.11).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        names = ('input', 'kernel_size', 'stride', 'padding')
        given = dict(zip(names, args, strict=False), **(kwargs or {}))
        step = given.get('stride')
        if (func is F.max_pool2d and given['kernel_size'] == 1
                and isinstance(step, int) and not given.get('padding')):
            return given['input'][..., ::step, ::step]
        return func(*args, **(kwargs or {}))


def _name_edges(images: Any) -> None:
    """Name the dynamic height and width in the input of an ONNX model, where
    torch has numbered them, so that a user can fix them by name."""
    names: dict[str, str] = {}
    for axis, name in ((-2, 'height'), (-1, 'width')):
        edge = getattr(images.shape[axis], 'value', None)
        if edge is not None:
            images.shape[axis] = names.setdefault(edge, name)


def _onnx(graph: Graph, fuse: bool) -> bytes:
    # optimize=True would fold norms into convolutions, too.
    program = torch.onnx.export(
        graph.net, tuple(graph.inputs.values()), dynamo=True, verbose=False,
        input_names=list(graph.inputs), output_names=graph.names,
        optimize=fuse, dynamic_shapes=graph.dynamic())
    assert program is not None  # with dynamo=True
    if graph.divisor == 1:
        _name_edges(program.model.graph.inputs[0])
    program.model.metadata_props[_ABOUT] = json.dumps(graph.description)
    model = program.model_proto
    # Stack traces with this machine's paths: of EfficientNet-Lite0 0.9 MB.
    for each in (*model.graph.node, *model.graph.value_info):
        del each.metadata_props[:]
    return model.SerializeToString()


def without_source_lines(data: bytes) -> bytes:
    """A TorchScript file without the records that name the lines of Python
    which each operator comes from, by their paths on this machine.

    torch.jit.save has no option for it. torch.jit.load reads these records
    if they are there, and only to say in an error where it arose.
    """
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    buffer = io.BytesIO()
    # Aligns tensors as torch.jit.save does, which zipfile would not.
    writer = torch._C.PyTorchFileWriter(buffer)
    for name in reader.get_all_records():
        # The writer makes the last one, a hash of all records, itself.
        if not name.endswith(('.debug_pkl', '.data/serialization_id')):
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return buffer.getvalue()


def _torchscript(graph: Graph, fuse: bool) -> bytes:
    buffer = io.BytesIO()
    traced = torch.jit.trace(graph.net, (graph.example, ), check_trace=False)
    torch.jit.save(traced, buffer,
                   _extra_files={_ABOUT: json.dumps(graph.description)})
    return without_source_lines(buffer.getvalue())


def _pt2(graph: Graph, fuse: bool) -> bytes:
    buffer = io.BytesIO()
    with _PoolOfOne():
        program = torch.export.export(
            graph.net, tuple(graph.inputs.values()),
            dynamic_shapes=graph.dynamic())
    if graph.divisor == 1:
        # torch 2.11 guards the graph of each pooling with the parity of its
        # example's edges, on which nothing in the graph depends. Whether it
        # runs at other sizes, the check on real images finds out.
        program._guards_code = []
    program.example_inputs = None  # images of the test set
    for node in program.graph.nodes:  # with this machine's paths
        node.meta.pop('stack_trace', None)
    torch.export.save(program, buffer,
                      extra_files={_ABOUT: json.dumps(graph.description)})
    return buffer.getvalue()


def _run_onnx(data: bytes, lengths: dict[str, int] | None = None) -> Run:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the latency is that of one thread
    options.log_severity_level = 3
    for name, length in (lengths or {}).items():
        options.add_free_dimension_override_by_name(name, length)
    session = onnxruntime.InferenceSession(
        data, options, providers=['CPUExecutionProvider'])
    names = [each.name for each in session.get_inputs()]
    return lambda *inputs: [torch.from_numpy(y) for y in session.run(
        None, {name: x.numpy() for name, x
               in zip(names, inputs, strict=True)})]


def _run_torchscript(data: bytes, lengths: dict[str, int] | None = None
                     ) -> Run:
    module = torch.jit.load(io.BytesIO(data), map_location='cpu')
    return lambda *inputs: list(module(*inputs))


def _run_pt2(data: bytes, lengths: dict[str, int] | None = None) -> Run:
    module = torch.export.load(io.BytesIO(data)).module()
    return lambda *inputs: list(module(*inputs))


_WRITE = dict(onnx=_onnx, torchscript=_torchscript, pt2=_pt2)
_RUN = dict(onnx=_run_onnx, torchscript=_run_torchscript, pt2=_run_pt2)


def norms_of_onnx(data: bytes) -> int:
    """How many batch normalizations the graph of an ONNX file holds."""
    import onnx
    return sum(node.op_type == 'BatchNormalization'
               for node in onnx.load_from_string(data).graph.node)


def graph_bytes(kind: str, graph: Graph, fuse: bool = True,
                way_out: str = "another format or part, or format 'pth'"
                ) -> bytes:
    """The bytes of a graph's file.

    Args:
        way_out: what the user is to take if it cannot be exported.

    Raises:
        UserError: naming the operator or layer that cannot be exported.
    """
    try:
        with _quietly():
            return _WRITE[kind](graph, fuse)
    except Exception as error:  # each exporter has its own
        cause = blame(error, graph.net)
    finally:
        # torch.onnx.export leaves the cache off if it raises.
        torch.set_autocast_cache_enabled(True)
    raise UserError(f'The network cannot be exported as {kind}: {cause}. Take '
                    f'{way_out}.')


def graph_run(kind: str, data: bytes, shape: Sequence[int] | None = None
              ) -> Run:
    """Load a graph's file into the runtime of its format.

    Args:
        shape: (N, ..., H, W) of all images, which onnxruntime is given; the
            other runtimes have no use for it.
    """
    lengths = None if shape is None else dict(
        batch=shape[0], height=shape[-2], width=shape[-1])
    with _quietly():
        run = _RUN[kind](data, lengths)

    @torch.no_grad()
    def quiet(*inputs: Tensor) -> list[Tensor]:
        return run(*inputs)

    return quiet


def weight_bytes(kind: str, state: dict[str, Tensor], meta: dict) -> bytes:
    """The bytes of a state dict's file; ``meta`` is plain data."""
    state = {name: value.detach().clone(
        memory_format=torch.contiguous_format)
        for name, value in state.items()}
    if kind == 'safetensors':
        from safetensors.torch import save
        return save(state, {name: value if isinstance(value, str)
                            else json.dumps(value)
                            for name, value in meta.items()})
    buffer = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=state), buffer)
    return buffer.getvalue()


def weights_in(kind: str, data: bytes) -> dict[str, Tensor]:
    """The state dict in the bytes of a file."""
    if kind == 'safetensors':
        from safetensors.torch import load
        return load(data)
    return torch.load(io.BytesIO(data), weights_only=True)['state_dict']
