"""What a run says while it lasts and at its end: records, metrics, the Prometheus endpoint, the terminal."""
