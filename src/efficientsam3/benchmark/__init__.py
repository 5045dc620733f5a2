"""Where the time goes: training steps, data, latency, parameters."""
