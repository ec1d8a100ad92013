"""What goes where: replicas onto nodes, stages onto devices, experts, agents and tenants onto hardware."""
