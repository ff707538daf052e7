"""The picture of notebook 00: embeddings on a circle move as the package's losses move them."""

import math
import shutil

import pytest
import torch
from torch import Tensor

from contsteal import losses
from contsteal.paper import plots

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PAGE = plots.STYLE.with_name("circle.html")


def moved(start: list[float], answers: list[float], loss: str, temperature: float) -> list[float]:
    """Return the angles after one step of gradient descent, by the package's losses."""

    def vectors(angles: Tensor) -> Tensor:
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    angles = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    s, t = vectors(angles), vectors(torch.tensor(answers, dtype=torch.float64))
    value = losses.mse(s, t) if loss == "mse" else losses.cont_steal(s, t, temperature)
    (gradient,) = torch.autograd.grad(value, angles)
    scale = 0.3 * len(start) * (1 if loss == "mse" else temperature)
    return (angles - scale * gradient).tolist()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_dots_move_by_the_losses_and_stand_still_without_scripts() -> None:
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(PAGE.as_uri())
        answers = page.evaluate("ANSWERS")
        for loss, temperature in (("mse", 0.5), ("contrastive", 0.5), ("contrastive", 0.2)):
            page.click("#reset")
            page.check(f"[value={loss}]")
            if loss != "mse":
                page.fill("#temperature", str(temperature))
            before = page.evaluate("angles")
            page.click("#step")
            assert page.evaluate("angles") == pytest.approx(
                moved(before, answers, loss, temperature)
            )
            lines = page.locator("#plane line").count()
            assert (lines == 1) == (loss == "mse"), "one pulls, and the others push"
            page.click("#many")
            page.click("#many")
            assert "own for 6 of 6 images" in page.inner_text("#state")
            off = [math.sin(a - b) for a, b in zip(page.evaluate("angles"), answers, strict=True)]
            assert (max(map(abs, off)) < 1e-3) == (loss == "mse"), "only MSE copies the answers"
        still = browser.new_context(java_script_enabled=False).new_page()
        still.goto(PAGE.as_uri())
        assert "Scripts are switched off here" in still.inner_text(".side")
        rings, dots = (still.locator(f"#plane circle[r='{size}']").count() for size in (8, 5))
        assert (rings, dots) == (len(answers), len(answers))
        browser.close()
    assert errors == []
