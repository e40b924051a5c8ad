# The image of the daemon; with `--target stand-ins`, that of X and AWS on this machine, for docker-compose.yml.
#
# Packages are installed and everything is compiled in stages of their own, so that the images hold no pip cache, and
# write nothing at run time: they work with a read-only root. Wheels only: no stage needs a compiler.

FROM python:3.13-slim-trixie AS base
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /app

FROM base AS daemon-build
COPY requirements/daemon.txt /tmp/requirements.txt
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --only-binary=:all: --require-hashes \
       -r /tmp/requirements.txt
# botocore knows some 400 services; these are what Kinesis and all ways to credentials need.
RUN find /opt/venv/lib/python*/site-packages/botocore/data -mindepth 1 -maxdepth 1 -type d \
       ! -name kinesis ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} +
COPY service/ service/
COPY processor/__init__.py processor/wire.py processor/
# Unchecked, because nothing in an image changes: no start and no health check compares times or compiles again.
RUN python -m compileall -q --invalidation-mode unchecked-hash service processor

FROM base AS stand-ins-build
COPY requirements/demo.txt /tmp/requirements.txt
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --only-binary=:all: --require-hashes \
       -r /tmp/requirements.txt
COPY local/ local/
COPY processor/ processor/
COPY deploy/template.yaml deploy/
RUN python -m compileall -q --invalidation-mode unchecked-hash local processor

FROM base AS stand-ins
LABEL org.opencontainers.image.title="Millrace stand-ins" \
      org.opencontainers.image.description="X and AWS on one machine, for trying Millrace" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=stand-ins-build /opt/venv /opt/venv
COPY --from=stand-ins-build /app /app
# A new volume takes over the owner of the directory that it covers. Not declared as a volume, which x would get too.
RUN install -d -o 10001 -g 10001 /var/lib/stand-ins
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "local"]

# Last, so that a build without --target makes it.
FROM base AS daemon
LABEL org.opencontainers.image.title="Millrace" \
      org.opencontainers.image.description="Carries posts from the X API v2 streams into Amazon Kinesis" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=daemon-build /opt/venv /opt/venv
COPY --from=daemon-build /app /app
RUN install -d -o 10001 -g 10001 /var/lib/millrace
# Only what is published can be reached from outside of a container; 127.0.0.1 never could.
ENV MILLRACE_HTTP_HOST=0.0.0.0 MILLRACE_JOURNAL=/var/lib/millrace
USER 10001:10001
VOLUME /var/lib/millrace
EXPOSE 8080
STOPSIGNAL SIGTERM
# It tells a process that lives from one that does not, as /healthz does: an outage of X or Kinesis needs no restart.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --start-interval=2s \
    CMD ["python", "-m", "service", "health"]
ENTRYPOINT ["python", "-m", "service"]
