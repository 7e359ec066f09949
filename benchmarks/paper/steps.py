"""Figure 5: after how many steps do coefficients stand still?

Paper: 1,500 steps with W saved every 50; the mean cosine similarity of components' coefficients with their final
values exceeds 95% by step 700 and 99% by step 1,100. Both solvers are run: the
paper's (multiplicative W, gradient steps on G at the authors' default rate) and this library's, which has no rate.
Losses are shown because standing still is not yet being done.
"""

import numpy as np
from _harness import Row, Script, figure
from _settings import language

import npeff_jax as npeff
from npeff_jax.evaluation import similarity_to_final
from npeff_jax.factorization import DampedALS, GradientDescent, Stopping

SOLVERS = {"the paper's solver": GradientDescent(), "damped ALS": DampedALS()}
PAPER = {0.95: "700", 0.99: "1,100"}


def main():
    script = Script("Number of steps until coefficients are as similar to their final values")
    setting = language(script.cache, script.fast)
    steps, every, r = (60, 5, 12) if script.fast else (1500, 50, 32)
    pefs = setting.pefs()
    rows, details = [], setting.describe() | {"n_components": r}
    drawn, axes = figure(1)
    for name, solver in SOLVERS.items():
        saved: list[tuple[int, np.ndarray]] = []
        found = npeff.decompose(
            pefs,
            r,
            seed=0,
            solver=solver,
            stopping=Stopping(max_steps=steps, tolerance=-1.0, window=every),  # never stops early
            callback=lambda now, saved=saved: saved.append((now.step, np.array(now.coefficients))),
            progress=False,
        )
        script.log(f"{name}: loss {found.history.loss[-1]:.4f}, {found.stopped}")
        curve = similarity_to_final([W for _, W in saved]).mean(axis=1)
        at = np.array([step for step, _ in saved])
        for level, paper in PAPER.items():
            reached = int(at[np.flatnonzero(curve < level).max(initial=-1) + 1])
            note = f"loss {found.history.loss[reached - 1]:.3f} there, {found.history.loss[-1]:.3f} at {steps}"
            rows.append(Row(f"{name}: above {level:.0%} from step", paper, f"{reached:,}", note))
        details[name] = {"steps": at, "similarity": curve, "loss": found.history.loss[at - 1]}
        axes[0].plot(at, curve, label=name)
    axes[0].set(xlabel="step", ylabel="mean cosine with the final coefficients", ylim=(0, 1.02))
    axes[0].legend()
    script.finish(rows, details, drawn)


if __name__ == "__main__":
    main()
