"""Questions to a page that is open in a browser."""

import time


def texts(browser, selector):
    return browser.execute_script(f"return [...document.querySelectorAll('{selector}')].map((e) => e.textContent)")


def eventually(browser, selector, expected):
    """Keys change the address, and the page follows a moment later."""
    for _ in range(100):
        if texts(browser, selector) == expected:
            return
        time.sleep(0.05)
    assert texts(browser, selector) == expected


def listed(browser):
    return [int(number) for number in texts(browser, "#list .number")]


def quiet(browser) -> bool:
    return [entry["message"] for entry in browser.get_log("browser")] == []
