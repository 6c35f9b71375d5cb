"""Rialto on Railway: the gateway and its PostgreSQL. docs/railway.md says how to use this file.

The Railway CLI runs it (``railway config plan``, ``railway config apply``) with the ``python3`` on
the path, which must find ``railway-sdk``. It owns the whole environment: what is not named here is
proposed for removal, so give Rialto a project of its own and read each plan.

No ``source`` is named: deploy with ``railway up``, connect a repository in the dashboard, or add
``source=github("you/rialto")``.
"""

from railway_sdk import Project, define_railway, postgres, preserve, project, service

HEALTHCHECK_TIMEOUT_S = 300
DRAINING_S = 120
OVERLAP_S = 10


@define_railway
def main(_ctx: object = None) -> Project:
    """The project that the CLI compares with what runs."""
    database = postgres("Postgres")
    gateway = service(
        "rialto",
        build={"builder": "DOCKERFILE", "dockerfilePath": "Dockerfile"},
        preDeploy="scripts/migrate.sh",
        healthcheck="/health",
        healthcheckTimeout=HEALTHCHECK_TIMEOUT_S,
        replicas=1,
        deploy={
            "restartPolicyType": "ALWAYS",
            "drainingSeconds": DRAINING_S,
            "overlapSeconds": OVERLAP_S,
        },
        env={
            "DATABASE_URL": database.env.DATABASE_URL,
            # Set in Railway, kept out of this file and never changed by it.
            "VENICE_API_KEY": preserve(),
            "OPERATOR_KEY": preserve(),
            "ENCRYPTION_KEY": preserve(),
            # The same three numbers as variables: the service reads the first to know how long it
            # may finish calls, and a service that was set up by hand gets all three from here.
            "RAILWAY_DEPLOYMENT_DRAINING_SECONDS": str(DRAINING_S),
            "RAILWAY_DEPLOYMENT_OVERLAP_SECONDS": str(OVERLAP_S),
            "RAILWAY_HEALTHCHECK_TIMEOUT_SEC": str(HEALTHCHECK_TIMEOUT_S),
        },
    )
    return project("rialto", resources=[database, gateway])
