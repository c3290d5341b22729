"""The shipped notebook on mixtures in a real JupyterLab: the training is drawn as it goes, and hears Stop."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1500)]


def test_a_training_is_drawn_as_it_goes_and_hears_stop(driver, tmp_path) -> None:
    page = driver.page
    page.set_default_timeout(900_000)
    driver.open_shipped("03_lora_moe.ipynb")
    status = page.locator(".wb-view .wb-status")
    # A cell that waits for the end keeps the button's word from the kernel, so only the cells before it run here.
    driver.run_above("lora.wait()")
    view = page.locator(".wb-view")
    view.locator("svg").first.wait_for()
    first = view.locator("svg").first.inner_html()
    page.wait_for_function("first => document.querySelector('.wb-view svg')?.innerHTML !== first", arg=first)
    stop = page.get_by_role("button", name="Stop")
    assert stop.is_enabled()
    assert status.inner_text().startswith("running; step ")
    driver.picture(view, tmp_path / "live.png")
    stop.click()
    status.filter(has_text="stopped; step ").wait_for()
    assert stop.is_disabled()
    driver.run_all()
    page.wait_for_function(
        "[...document.querySelectorAll('.wb-view .wb-status')].filter("
        "(line) => line.textContent.startsWith('finished; step 120 of 120')).length >= 3"
    )
    driver.picture(page.locator(".wb-view", has_text="expert load").first, tmp_path / "mixture.png")
    driver.quiet()
