"""Costs by name: those fitted to measurements of the real engine (`benchmarks/fit_service.py`), and the invented ones.

docs/simulator.md has what was measured, and how far the model is off.
"""

from __future__ import annotations

from llava_grpc.sim.service import Costs

INVENTED_7B = Costs()
"""Of the order of a 7B model on one GPU; nobody measured them. The presets use them."""

DEMO_CPU = Costs(request=0.005307, picture=0.01296, prompt_token=7.74e-05, step=0.005687, step_sequence=0.0004744)
"""Measured 2026-11-24: the bundled model, float32, one thread of a 2-core AMD EPYC that was quiet. For prompts of up to
512 tokens, pictures of 336 by 336 pixels, 1 to 16 requests running with short contexts: within 19 %."""
