"""The images that the book trains on, under the name that users import: :mod:`explr.experiments.data`."""

from explr.experiments.data import *  # noqa: F403
