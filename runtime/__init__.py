"""What a container is made of, and what containers and machines share."""
