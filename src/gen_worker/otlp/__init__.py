"""The process that sends spans of jobs to a collector, in OpenTelemetry's protocol."""
