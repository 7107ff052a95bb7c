"""One job script, submitted and followed; what the cluster is, and its nodes' part."""
