"""What all tests share."""

from __future__ import annotations

import signal

for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    # Started by nohup or as a background job, tests would hand down to their children that these are ignored.
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)
