from .core.errors import DegradeError as DegradeError
from .decision.policy import GatePolicy as GatePolicy
from .decision.policy import JudgePolicy as JudgePolicy
from .decision.policy import TaskPolicy as TaskPolicy
from .decision.results import Decision as Decision
from .decision.results import Verdict as Verdict
from .decision.verdict import compare as compare
from .decision.verdict import decide as decide
from .registry.promotion import Promotion as Promotion
from .registry.promotion import promote as promote
from .registry.verification import Verification as Verification
from .registry.verification import load_verified_model as load_verified_model
from .registry.verification import verify_version as verify_version
from .report.plots import forest_plot as forest_plot
from .samples.pairing import PairedScores as PairedScores
from .samples.pairing import PairedTask as PairedTask
from .samples.pairing import pair as pair
from .samples.readers import read_samples as read_samples
from .samples.table import SampleScores as SampleScores
from .workflows.quantize import QuantizeOptions as QuantizeOptions
from .workflows.quantize import quantize_and_gate as quantize_and_gate

__version__: str
