from .candidates import find_candidates as find_candidates
from .evidence import log_decision as log_decision
from .evidence_bundle import (
    BundleReview as BundleReview,
)
from .evidence_bundle import (
    export_evidence as export_evidence,
)
from .evidence_bundle import (
    verify_bundle as verify_bundle,
)
from .gate_config import allowed_signers as allowed_signers
from .lm_eval_runs import LoggedEvaluation as LoggedEvaluation
from .lm_eval_runs import log_lm_eval as log_lm_eval
from .promotion import Promotion as Promotion
from .promotion import promote as promote
from .registration import log_model as log_model
from .registration import register as register
from .signing_keys import AllowedSigner as AllowedSigner
from .verification import (
    ProcessorWarning as ProcessorWarning,
)
from .verification import (
    Verification as Verification,
)
from .verification import (
    verify_version as verify_version,
)
from .verified_loading import load_verified_model as load_verified_model
