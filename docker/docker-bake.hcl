# The flavors of the base image. Versions are arguments: `PYTHON_VERSION=3.11 docker buildx bake -f docker/docker-bake.hcl cpu`.

variable "PYTHON_VERSION" { default = "3.12" }
variable "TORCH_VERSION" { default = "2.9.1" }
variable "REGISTRY" { default = "" }

group "default" {
  targets = ["cpu", "cuda12_6", "cuda12_8", "cuda13"]
}

target "runtime" {
  context    = "."
  dockerfile = "docker/runtime.Dockerfile"
  args = {
    PYTHON_VERSION = PYTHON_VERSION
    TORCH_VERSION  = TORCH_VERSION
  }
}

target "cpu" {
  inherits = ["runtime"]
  tags     = ["${REGISTRY}gen-runtime:cpu-torch2.9"]
  args     = { TORCH_INDEX = "https://download.pytorch.org/whl/cpu" }
}

target "cuda12_6" {
  inherits = ["runtime"]
  tags     = ["${REGISTRY}gen-runtime:cuda12.6-torch2.9"]
  args     = { TORCH_INDEX = "https://download.pytorch.org/whl/cu126" }
}

target "cuda12_8" {
  inherits = ["runtime"]
  tags     = ["${REGISTRY}gen-runtime:cuda12.8-torch2.9"]
  args     = { TORCH_INDEX = "https://download.pytorch.org/whl/cu128" }
}

target "cuda13" {
  inherits = ["runtime"]
  tags     = ["${REGISTRY}gen-runtime:cuda13-torch2.9"]
  args     = { TORCH_INDEX = "https://download.pytorch.org/whl/cu130" }
}
