"""The process that owns a host's devices: it keeps one child per device, hands out jobs and answers for every one of them."""
