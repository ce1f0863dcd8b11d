"""`make demo`: serve the sample poem on a free port, fetch it, print it, and stop the server."""

import os
import subprocess
import sys

POETRY = (sys.executable, "-m", "poetry")


def main() -> int:
    """Run both commands, and say so."""
    print("$ poetry serve", flush=True)
    server = subprocess.Popen([*POETRY, "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        announcement = server.stdout.readline().strip()
        address = announcement.rpartition(" on ")[2]
        print(f"{announcement}\n\n$ poetry get {address}", flush=True)
        fetched = subprocess.run([*POETRY, "get", address], timeout=60, check=False)
    finally:
        server.terminate()
        stopped = server.wait(60)
    print(f"\nThe poem arrived whole: {'yes' if fetched.returncode == 0 else 'NO'}.")
    print(f"The server was told to stop, and ended with exit code {stopped}.")
    on_windows = os.name == "nt"  # there to terminate is to kill, and gives 1
    return fetched.returncode or (0 if on_windows else stopped)


if __name__ == "__main__":
    sys.exit(main())
