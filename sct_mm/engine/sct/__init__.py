"""The training step of Scale Calibrated Training (SCT)."""
from .adapt_step import AdaptTeacher, check_adaptable
from .checks import check_pipeline
from .distill_step import DistillTeacher
from .schedule import Pass, Schedule, make_schedule, sizes_between
from .step import SCTStep, check_images
from .teacher import Labels, Loss, Teacher

__all__ = ['AdaptTeacher', 'DistillTeacher', 'Labels', 'Loss', 'Pass',
           'SCTStep', 'Schedule', 'Teacher', 'check_adaptable',
           'check_images', 'check_pipeline', 'make_schedule', 'sizes_between']
