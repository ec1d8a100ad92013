"""What is written for others to read: tables of requests, documents, charts, deployments."""
