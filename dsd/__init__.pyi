"""What type checkers see of the package: the names that ``__init__.py`` imports lazily."""

from dsd.corruption.writer import corrupt as corrupt
from dsd.distillation.losses import reverse_kl_loss as reverse_kl_loss
from dsd.distillation.losses import (
    score_distillation_sampling_loss as score_distillation_sampling_loss,
)
from dsd.distillation.losses import score_identity_loss as score_identity_loss
from dsd.distillation.trainer import Distillation as Distillation
from dsd.features.extractor import load_extractor as load_extractor
from dsd.frechet import frechet_distance_of_folders as frechet_distance_of_folders
from dsd.metrics.frechet import frechet_distance as frechet_distance
from dsd.model.checkpoint import load_denoiser as load_denoiser
from dsd.model.checkpoint import load_generator as load_generator
from dsd.model.denoiser import Denoiser as Denoiser
from dsd.model.generator import OneStepGenerator as OneStepGenerator
from dsd.model.networks.unet import UNet as UNet
from dsd.model.samplers import sample_teacher as sample_teacher
from dsd.operators.operator import Operator as Operator
from dsd.pretraining.consistency_loss import consistency_loss as consistency_loss
from dsd.pretraining.denoising_loss import ambient_denoising_loss as ambient_denoising_loss
from dsd.pretraining.trainer import TeacherTraining as TeacherTraining
from dsd.selection.proximal import renoise as renoise
from dsd.storage.image_store import ImageStore as ImageStore
from dsd.theory.gaussian_mixture import GaussianMixture as GaussianMixture
