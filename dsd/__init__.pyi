"""What type checkers see of the package: the names that ``__init__.py`` imports lazily."""

from dsd.analytic import GaussianMixture as GaussianMixture
from dsd.checkpoint import load_denoiser as load_denoiser
from dsd.checkpoint import load_generator as load_generator
from dsd.corruption import corrupt as corrupt
from dsd.features import load_extractor as load_extractor
from dsd.generator import OneStepGenerator as OneStepGenerator
from dsd.imagestore import ImageStore as ImageStore
from dsd.losses.consistency import consistency_loss as consistency_loss
from dsd.losses.distill import (
    reverse_kl_loss as reverse_kl_loss,
)
from dsd.losses.distill import (
    score_distillation_sampling_loss as score_distillation_sampling_loss,
)
from dsd.losses.distill import (
    score_identity_loss as score_identity_loss,
)
from dsd.losses.pretrain import ambient_denoising_loss as ambient_denoising_loss
from dsd.metrics.frechet import frechet_distance as frechet_distance
from dsd.metrics.proximal import renoise as renoise
from dsd.networks.unet import UNet as UNet
from dsd.operators import Operator as Operator
from dsd.precond import Denoiser as Denoiser
from dsd.samplers import sample_teacher as sample_teacher
from dsd.training.distill import Distillation as Distillation
from dsd.training.pretrain import TeacherTraining as TeacherTraining
