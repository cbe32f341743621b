"""A Triton backend named onnxruntime: serves ONNX models with ONNX Runtime in Python.

Triton starts one process of this for each instance of each model whose configuration says
`backend: "onnxruntime"`, so that one model repository runs here and on a server with the backend of
that name in C++. It needs NumPy, ONNX Runtime and Triton's triton_python_backend_utils.

Of the configuration it reads, with the meaning that the C++ backend gives them
(https://github.com/triton-inference-server/onnxruntime_backend): max_batch_size, inputs (optional
ones, too), outputs, default_model_filename, optimization.graph.level, and the parameters
intra_op_thread_count, inter_op_thread_count, execution_mode, enable_mem_arena and
enable_mem_pattern. Where it names no inputs or no outputs, the graph completes it. An instance on a
GPU that this ONNX Runtime cannot use runs on the CPU.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

# ONNX Runtime's name of a type -> the configuration's. Of bfloat16 there is no NumPy array.
DATA_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
# optimization.graph.level -> ONNX Runtime's level. That 2 switches all off is the C++ backend's.
OPTIMIZATION_LEVELS = {
    -1: "ORT_ENABLE_BASIC",
    0: "ORT_ENABLE_ALL",
    1: "ORT_ENABLE_EXTENDED",
    2: "ORT_DISABLE_ALL",
}
EXECUTION_MODES = {0: "ORT_SEQUENTIAL", 1: "ORT_PARALLEL"}
SWITCHES = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
DEFAULT_MAX_BATCH_SIZE = 4  # Triton's own, where the configuration names none
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class TritonPythonModel:
    """One instance of a model; Triton's Python backend makes it and calls it."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Complete inputs, outputs and max_batch_size from the graph, where they are missing."""
        config = auto_complete_model_config.as_dict()
        if not (config["input"] and config["output"]):
            complete(auto_complete_model_config, open_session(config, [CPU]))
        return auto_complete_model_config

    def initialize(self, args):
        """Load the graph and see that the configuration describes it."""
        config = json.loads(args["model_config"])
        started = time.perf_counter()
        self.session = open_session(config, choose_providers(args))
        check(config, self.session)
        self.batching = config["max_batch_size"] > 0
        self.outputs = [output["name"] for output in config["output"]]
        options = self.session.get_session_options()
        pb_utils.Logger.log_info(
            f"{config['name']}: {', '.join(self.session.get_providers())}; "
            f"intra_op_thread_count {options.intra_op_num_threads}, "
            f"inter_op_thread_count {options.inter_op_num_threads}, "
            f"{options.execution_mode.name}, {options.graph_optimization_level.name}; "
            f"loaded in {time.perf_counter() - started:.2f} s"
        )

    def execute(self, requests):
        """Answer each request, with an error where the graph fails on it."""
        responses = [None] * len(requests)
        for places in self.group(requests):
            answers = self.answer([requests[place] for place in places])
            for place, answer in zip(places, answers, strict=True):
                responses[place] = answer
        return responses

    def finalize(self):
        """Free the graph."""
        self.session = None

    def group(self, requests):
        """Places of the requests that may run as one: equal shapes but for the batch."""
        if not self.batching:
            return [[place] for place in range(len(requests))]
        groups = {}
        for place, request in enumerate(requests):
            key = tuple(sorted((t.name(), tuple(t.shape()[1:])) for t in request.inputs()))
            groups.setdefault(key, []).append(place)
        return list(groups.values())

    def answer(self, requests):
        """Responses to requests that run as one; each by itself if that fails."""
        try:
            return self.run(requests)
        except Exception as error:  # ONNX Runtime's errors have no root of their own
            if len(requests) == 1:
                return [refusal(error)]
        return [response for request in requests for response in self.answer([request])]

    def run(self, requests):
        """Run the graph once."""
        inputs = [{t.name(): to_array(t) for t in request.inputs()} for request in requests]
        if len(inputs) == 1:
            feed = inputs[0]
        else:
            feed = {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}
        asked = {name for request in requests for name in request.requested_output_names()}
        names = [name for name in self.outputs if name in asked]
        results = dict(zip(names, self.session.run(names, feed), strict=True))
        if not self.batching:
            return [response(results, requests[0])]
        counts = [len(next(iter(one.values()))) for one in inputs]
        for name, result in results.items():
            if len(result) != sum(counts):
                raise RuntimeError(
                    f"output {name} has {len(result)} rows for a batch of {sum(counts)}"
                )
        ends = np.cumsum(counts)
        return [
            response({name: result[end - count : end] for name, result in results.items()}, request)
            for request, count, end in zip(requests, counts, ends, strict=True)
        ]


def response(results, request):
    """The outputs that the request asked for."""
    asked = set(request.requested_output_names())
    tensors = [pb_utils.Tensor(name, value) for name, value in results.items() if name in asked]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def refusal(error):
    """An answer that is an error, on one line."""
    bad_input = type(error).__name__ in ("InvalidArgument", "ValueError")
    code = pb_utils.TritonError.INVALID_ARG if bad_input else pb_utils.TritonError.INTERNAL
    text = " ".join(str(error).split())
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))


def to_array(tensor):
    """An input as ONNX Runtime takes it; its strings are text, by ONNX's definition in UTF-8."""
    array = tensor.as_numpy()
    if array.dtype != np.object_:
        return array
    try:
        texts = [item.decode() for item in array.flat]
    except UnicodeDecodeError as error:
        raise ValueError(f"input {tensor.name()} holds a string that is not UTF-8") from error
    return np.array(texts, dtype=np.object_).reshape(array.shape)


def open_session(config, providers):
    """The model's graph in ONNX Runtime, with the options that its configuration asks for."""
    path = Path(pb_utils.get_model_dir(), config["default_model_filename"] or "model.onnx")
    if path.is_dir():  # a graph beside its external data
        path = path / "model.onnx"
    if not path.is_file():
        raise RuntimeError(f"{path} is not there")
    options = session_options(config)
    try:
        session = ort.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors have no root of their own
        raise RuntimeError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from None
    session.disable_fallback()  # from now on a failure is an error, not another provider
    return session


def session_options(config):
    """From the configuration to ONNX Runtime's options."""
    parameters = {
        name: value["string_value"] for name, value in config.get("parameters", {}).items()
    }
    options = ort.SessionOptions()
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, choose("optimization.graph.level", level, OPTIMIZATION_LEVELS)
    )
    mode = number(parameters, "execution_mode")
    options.execution_mode = getattr(
        ort.ExecutionMode, choose("execution_mode", mode, EXECUTION_MODES)
    )
    # 0 and less are ONNX Runtime's own choice.
    options.intra_op_num_threads = max(number(parameters, "intra_op_thread_count"), 0)
    options.inter_op_num_threads = max(number(parameters, "inter_op_thread_count"), 0)
    for name, option in (
        ("enable_mem_arena", "enable_cpu_mem_arena"),
        ("enable_mem_pattern", "enable_mem_pattern"),
    ):
        if name in parameters:
            setattr(options, option, choose(name, parameters[name].lower(), SWITCHES))
    return options


def number(parameters, name):
    """A parameter that is a whole number; 0 where it is missing."""
    text = parameters.get(name, "0")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"parameter {name} is {text!r}, not a whole number") from None


def choose(name, value, choices):
    """What a value stands for."""
    if value not in choices:
        allowed = ", ".join(str(choice) for choice in choices)
        raise ValueError(f"{name} is {value!r}, not one of {allowed}")
    return choices[value]


def choose_providers(args):
    """CUDA for an instance on a GPU, where this ONNX Runtime has it."""
    if args["model_instance_kind"] != "GPU":
        return [CPU]
    if CUDA not in ort.get_available_providers():
        pb_utils.Logger.log_warn(
            f"{args['model_instance_name']} shall run on a GPU, which this ONNX Runtime cannot "
            "use: it runs on the CPU"
        )
        return [CPU]
    return [(CUDA, {"device_id": args["model_instance_device_id"]}), CPU]


def complete(model_config, session):
    """Fill in what the configuration does not say, by the C++ backend's rules."""
    config = model_config.as_dict()
    tensors = [*session.get_inputs(), *session.get_outputs()]
    if all(tensor.shape and not isinstance(tensor.shape[0], int) for tensor in tensors):
        if config["max_batch_size"] == 0:
            model_config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
        if config["max_batch_size"] > 1 and "sequence_batching" not in config:
            model_config.set_dynamic_batching()
    add_inputs, add_outputs = not config["input"], not config["output"]
    for tensor in session.get_inputs() if add_inputs else []:
        model_config.add_input(describe(tensor, config))
        reshape(config["input"][-1], tensor, config)
    for tensor in session.get_outputs() if add_outputs else []:
        model_config.add_output(describe(tensor, config))
        reshape(config["output"][-1], tensor, config)


def describe(tensor, config):
    """A tensor in the configuration's terms, whose dims leave out the batch and are never empty."""
    dims = [size if isinstance(size, int) else -1 for size in tensor.shape]
    if config["max_batch_size"] > 0:
        del dims[0]
    return {"name": tensor.name, "data_type": data_type(tensor), "dims": dims or [1]}


def reshape(described, tensor, config):
    """Say so where a tensor has no sizes but the batch; auto-completion has no words for it."""
    if config["max_batch_size"] > 0 and len(tensor.shape) == 1:
        described["reshape"] = {"shape": []}


def data_type(tensor):
    """The configuration's name of a tensor's type."""
    if tensor.type not in DATA_TYPES:
        raise ValueError(f"{tensor.name} is a {tensor.type}, which this backend cannot serve")
    return DATA_TYPES[tensor.type]


def check(config, session):
    """Refuse a configuration that is of another graph than this."""
    required = {tensor.name: tensor for tensor in session.get_inputs()}
    optional = {tensor.name: tensor for tensor in session.get_overridable_initializers()}
    outputs = {tensor.name: tensor for tensor in session.get_outputs()}
    missing = required.keys() - {tensor["name"] for tensor in config["input"]}
    if missing:
        raise ValueError(f"the graph's input {min(missing)} is not in the configuration")
    for kind, described, tensors in (
        ("input", config["input"], {**optional, **required}),
        ("output", config["output"], outputs),
    ):
        for tensor in described:
            if tensor["name"] not in tensors:
                raise ValueError(
                    f"the configuration's {kind} {tensor['name']} is not in the graph, which has "
                    f"{', '.join(tensors)}"
                )
            check_tensor(kind, tensor, tensors[tensor["name"]], config["max_batch_size"] > 0)


def check_tensor(kind, described, tensor, batching):
    """Type and sizes of one input or output; a size of -1 goes with any."""
    name = f"{kind} {tensor.name}"
    if described["data_type"] != data_type(tensor):
        raise ValueError(
            f"{name} is {described['data_type']} in the configuration, {data_type(tensor)} in the "
            "graph"
        )
    if not tensor.shape:  # a scalar, or nothing is known of it
        return
    shape = described.get("reshape", {}).get("shape", described["dims"])
    dims = [-1] * batching + [int(size) for size in shape]
    sizes = [size if isinstance(size, int) else -1 for size in tensor.shape]
    if batching and sizes[0] != -1:
        raise ValueError(
            f"{name} has {sizes[0]} rows in the graph, always; max_batch_size must be 0"
        )
    if len(dims) != len(sizes) or any(
        -1 not in two and two[0] != two[1] for two in zip(dims, sizes, strict=True)
    ):
        raise ValueError(f"{name} is {dims} in the configuration, {sizes} in the graph")
