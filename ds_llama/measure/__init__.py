"""What a run really used: live tensor bytes, process and device memory, time, throughput."""
