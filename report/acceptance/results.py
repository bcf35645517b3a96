"""Runs the tests of one file and counts them."""
import traceback


def run_tests(tests, prefix="", before=lambda test: None):
    """Runs each test, prints its result and the totals, and returns the exit code. `before` is called with
    each test that is about to run."""
    passed = failed = 0
    for test in tests:
        name = f"{prefix}{test.__name__}"
        try:
            before(test)
            test()
            passed += 1
            print(f"ok    {name}")
        except Exception:
            failed += 1
            print(f"FAIL  {name}")
            traceback.print_exc()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0
