"""The networks of the book, under the name that users import: this module is :mod:`explr.experiments.models`."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from explr.experiments.models import *  # noqa: F403
else:
    from explr.experiments import models

    sys.modules[__name__] = models
