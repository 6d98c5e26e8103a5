from .decoder import OnnxDecoder as OnnxDecoder
from .decoder import Score as Score
from .encoder import OnnxEncoder as OnnxEncoder
from .family import model_family as model_family
from .generation import Sampling as Sampling
from .generation import generate as generate
from .pooling import Pooling as Pooling
from .pooling import read_pooling as read_pooling
from .providers import (
    available_providers as available_providers,
)
from .providers import (
    open_session as open_session,
)
from .providers import (
    resolve_device as resolve_device,
)
