import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EvaluationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVALUATION_STATE_UNSPECIFIED: _ClassVar[EvaluationState]
    EVALUATION_STATE_RUNNING: _ClassVar[EvaluationState]
    EVALUATION_STATE_SUCCEEDED: _ClassVar[EvaluationState]
    EVALUATION_STATE_FAILED: _ClassVar[EvaluationState]
    EVALUATION_STATE_CANCELLED: _ClassVar[EvaluationState]
    EVALUATION_STATE_INTERRUPTED: _ClassVar[EvaluationState]
EVALUATION_STATE_UNSPECIFIED: EvaluationState
EVALUATION_STATE_RUNNING: EvaluationState
EVALUATION_STATE_SUCCEEDED: EvaluationState
EVALUATION_STATE_FAILED: EvaluationState
EVALUATION_STATE_CANCELLED: EvaluationState
EVALUATION_STATE_INTERRUPTED: EvaluationState

class RunEvaluationRequest(_message.Message):
    __slots__ = ("dataset_uri", "models", "limit", "batch_size", "seed", "resume_run_id")
    DATASET_URI_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RESUME_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    dataset_uri: str
    models: _containers.RepeatedScalarFieldContainer[str]
    limit: int
    batch_size: int
    seed: int
    resume_run_id: str
    def __init__(self, dataset_uri: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., limit: _Optional[int] = ..., batch_size: _Optional[int] = ..., seed: _Optional[int] = ..., resume_run_id: _Optional[str] = ...) -> None: ...

class RunEvaluationResponse(_message.Message):
    __slots__ = ("progress", "finished")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    progress: EvaluationProgress
    finished: Evaluation
    def __init__(self, progress: _Optional[_Union[EvaluationProgress, _Mapping]] = ..., finished: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class EvaluationProgress(_message.Message):
    __slots__ = ("run_id", "images_done", "images_total", "images_per_second", "remaining_seconds", "accuracies")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGES_DONE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    REMAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ACCURACIES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    images_done: int
    images_total: int
    images_per_second: float
    remaining_seconds: float
    accuracies: _containers.RepeatedCompositeFieldContainer[RunningAccuracy]
    def __init__(self, run_id: _Optional[str] = ..., images_done: _Optional[int] = ..., images_total: _Optional[int] = ..., images_per_second: _Optional[float] = ..., remaining_seconds: _Optional[float] = ..., accuracies: _Optional[_Iterable[_Union[RunningAccuracy, _Mapping]]] = ...) -> None: ...

class RunningAccuracy(_message.Message):
    __slots__ = ("model", "correct_top1", "correct_top5")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CORRECT_TOP1_FIELD_NUMBER: _ClassVar[int]
    CORRECT_TOP5_FIELD_NUMBER: _ClassVar[int]
    model: str
    correct_top1: int
    correct_top5: int
    def __init__(self, model: _Optional[str] = ..., correct_top1: _Optional[int] = ..., correct_top5: _Optional[int] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("run_id", "state", "dataset_uri", "models", "images_done", "images_total", "create_time", "error", "results_json")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DATASET_URI_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_DONE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESULTS_JSON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    state: EvaluationState
    dataset_uri: str
    models: _containers.RepeatedScalarFieldContainer[str]
    images_done: int
    images_total: int
    create_time: _timestamp_pb2.Timestamp
    error: str
    results_json: str
    def __init__(self, run_id: _Optional[str] = ..., state: _Optional[_Union[EvaluationState, str]] = ..., dataset_uri: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., images_done: _Optional[int] = ..., images_total: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., error: _Optional[str] = ..., results_json: _Optional[str] = ...) -> None: ...

class GetEvaluationRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class GetEvaluationResponse(_message.Message):
    __slots__ = ("evaluation",)
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    evaluation: Evaluation
    def __init__(self, evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class ListEvaluationsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListEvaluationsResponse(_message.Message):
    __slots__ = ("evaluations", "next_page_token")
    EVALUATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    evaluations: _containers.RepeatedCompositeFieldContainer[Evaluation]
    next_page_token: str
    def __init__(self, evaluations: _Optional[_Iterable[_Union[Evaluation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelEvaluationRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class CancelEvaluationResponse(_message.Message):
    __slots__ = ("evaluation",)
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    evaluation: Evaluation
    def __init__(self, evaluation: _Optional[_Union[Evaluation, _Mapping]] = ...) -> None: ...

class DownloadEvaluationRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class DownloadEvaluationResponse(_message.Message):
    __slots__ = ("file_name", "chunk")
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    file_name: str
    chunk: bytes
    def __init__(self, file_name: _Optional[str] = ..., chunk: _Optional[bytes] = ...) -> None: ...
