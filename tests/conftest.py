import os

from hypothesis import HealthCheck, Phase, settings

# Before tqdm and torch are imported, here and in the processes that tests start. The networks of the tests are too small to
# share between threads; the tests themselves run side by side.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("EXPLR_STATIC", "1")

# What an example takes depends on what else the machine does: it decides nothing.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
settings.register_profile(  # make mutation
    "mutation", max_examples=20, derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate)
)
