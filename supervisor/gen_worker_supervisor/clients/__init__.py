"""Those who connect: lines of JSON, and the control socket with what operators ask there."""
