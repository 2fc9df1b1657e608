"""Put the runtime into a form for workstations without a network: a bundle, or a folder of wheels."""
