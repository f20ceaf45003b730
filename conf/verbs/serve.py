"""What can be set of `flowhand serve`."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from flowhand.deploy.server.config import ServerConfig

from ..sampling import SamplingConfig


@dataclass
class ServeRoot:
    """What `flowhand serve` reads."""

    checkpoint: str = MISSING  # folder of a checkpoint, of the run that wrote it, or of an export
    server: ServerConfig = field(default_factory=ServerConfig)
    head: SamplingConfig = field(default_factory=SamplingConfig)  # how a checkpoint's head samples, e.g. head.steps=10
    device: str = "auto"  # auto (cuda if there is one) | cpu | cuda | cuda:N
    threads: int = 1  # CPU threads of inference; 0: as many as this process may use
    compile: str = "no"  # no | fp32 | bf16: compile a checkpoint before serving it (Policy.compile)


ROOT = ServeRoot
CHOICES = {}
ABOUT = "Checkpoint or export -> policy server (openpi's websocket protocol)."
EXAMPLES = ["flowhand serve checkpoint=outputs/demo server.port=8000"]
MATTER = (
    "checkpoint",
    "server.host",
    "server.port",
    "server.key_file",
    "server.tls_certificate",
    "server.inference_batch",
    "head.steps",
    "device",
    "threads",
)
