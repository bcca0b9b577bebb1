//! Descriptions of types and fields. They come from `k8s-openapi`, are built for the asked kinds
//! when a document is built, and are dropped with it: an idle server holds none.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

/// Descriptions by definition name.
pub(super) struct Descriptions(Map<String, Value>);

impl Descriptions {
    /// Of these kinds (by type name) and all that they refer to. Unknown kinds have none.
    pub fn of<'a>(type_names: impl Iterator<Item = &'a str>) -> Self {
        let mut generator = SchemaGenerator::default();
        describe::<k8s_openapi::apimachinery::pkg::apis::meta::v1::Status>(&mut generator);
        describe::<k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions>(&mut generator);
        for name in type_names {
            if let Ok(at) = KINDS.binary_search_by(|(known, _)| known.cmp(&name)) {
                KINDS[at].1(&mut generator);
            }
        }
        Descriptions(generator.take_definitions(false))
    }

    /// What a type is for; empty if unknown.
    pub fn of_type(&self, definition: &str) -> &str {
        let found = self.0.get(definition).and_then(|d| d.get("description"));
        found.and_then(Value::as_str).unwrap_or_default()
    }

    /// What a field is for; empty if unknown.
    pub fn of_field(&self, definition: &str, field: &str) -> &str {
        self.0
            .get(definition)
            .and_then(|d| d.get("properties")?.get(field)?.get("description")?.as_str())
            .unwrap_or_default()
    }
}

/// Adds a kind and all that it refers to.
type Describe = fn(&mut SchemaGenerator);

fn describe<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

macro_rules! kinds {
    ($($name:literal => $($module:ident)::+,)+) => {
        &[$(($name, describe::<k8s_openapi::$($module)::+>)),+]
    };
}

/// The kinds that `k8s-openapi` knows, sorted by type name.
const KINDS: &[(&str, Describe)] = kinds! {
    "admissionregistration.v1.MutatingAdmissionPolicy" => api::admissionregistration::v1::MutatingAdmissionPolicy,
    "admissionregistration.v1.MutatingAdmissionPolicyBinding" => api::admissionregistration::v1::MutatingAdmissionPolicyBinding,
    "admissionregistration.v1.MutatingWebhookConfiguration" => api::admissionregistration::v1::MutatingWebhookConfiguration,
    "admissionregistration.v1.ValidatingAdmissionPolicy" => api::admissionregistration::v1::ValidatingAdmissionPolicy,
    "admissionregistration.v1.ValidatingAdmissionPolicyBinding" => api::admissionregistration::v1::ValidatingAdmissionPolicyBinding,
    "admissionregistration.v1.ValidatingWebhookConfiguration" => api::admissionregistration::v1::ValidatingWebhookConfiguration,
    "apiextensions.v1.CustomResourceDefinition" => apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    "apiregistration.v1.APIService" => kube_aggregator::pkg::apis::apiregistration::v1::APIService,
    "apps.v1.ControllerRevision" => api::apps::v1::ControllerRevision,
    "apps.v1.DaemonSet" => api::apps::v1::DaemonSet,
    "apps.v1.Deployment" => api::apps::v1::Deployment,
    "apps.v1.ReplicaSet" => api::apps::v1::ReplicaSet,
    "apps.v1.StatefulSet" => api::apps::v1::StatefulSet,
    "authentication.v1.SelfSubjectReview" => api::authentication::v1::SelfSubjectReview,
    "authentication.v1.TokenRequest" => api::authentication::v1::TokenRequest,
    "authentication.v1.TokenReview" => api::authentication::v1::TokenReview,
    "authorization.v1.LocalSubjectAccessReview" => api::authorization::v1::LocalSubjectAccessReview,
    "authorization.v1.SelfSubjectAccessReview" => api::authorization::v1::SelfSubjectAccessReview,
    "authorization.v1.SelfSubjectRulesReview" => api::authorization::v1::SelfSubjectRulesReview,
    "authorization.v1.SubjectAccessReview" => api::authorization::v1::SubjectAccessReview,
    "autoscaling.v1.Scale" => api::autoscaling::v1::Scale,
    "autoscaling.v2.HorizontalPodAutoscaler" => api::autoscaling::v2::HorizontalPodAutoscaler,
    "batch.v1.CronJob" => api::batch::v1::CronJob,
    "batch.v1.Job" => api::batch::v1::Job,
    "certificates.v1.CertificateSigningRequest" => api::certificates::v1::CertificateSigningRequest,
    "coordination.v1.Lease" => api::coordination::v1::Lease,
    "core.v1.Binding" => api::core::v1::Binding,
    "core.v1.ComponentStatus" => api::core::v1::ComponentStatus,
    "core.v1.ConfigMap" => api::core::v1::ConfigMap,
    "core.v1.Endpoints" => api::core::v1::Endpoints,
    "core.v1.Event" => api::core::v1::Event,
    "core.v1.LimitRange" => api::core::v1::LimitRange,
    "core.v1.Namespace" => api::core::v1::Namespace,
    "core.v1.Node" => api::core::v1::Node,
    "core.v1.PersistentVolume" => api::core::v1::PersistentVolume,
    "core.v1.PersistentVolumeClaim" => api::core::v1::PersistentVolumeClaim,
    "core.v1.Pod" => api::core::v1::Pod,
    "core.v1.PodTemplate" => api::core::v1::PodTemplate,
    "core.v1.ReplicationController" => api::core::v1::ReplicationController,
    "core.v1.ResourceQuota" => api::core::v1::ResourceQuota,
    "core.v1.Secret" => api::core::v1::Secret,
    "core.v1.Service" => api::core::v1::Service,
    "core.v1.ServiceAccount" => api::core::v1::ServiceAccount,
    "discovery.v1.EndpointSlice" => api::discovery::v1::EndpointSlice,
    "events.v1.Event" => api::events::v1::Event,
    "flowcontrol.v1.FlowSchema" => api::flowcontrol::v1::FlowSchema,
    "flowcontrol.v1.PriorityLevelConfiguration" => api::flowcontrol::v1::PriorityLevelConfiguration,
    "networking.v1.IPAddress" => api::networking::v1::IPAddress,
    "networking.v1.Ingress" => api::networking::v1::Ingress,
    "networking.v1.IngressClass" => api::networking::v1::IngressClass,
    "networking.v1.NetworkPolicy" => api::networking::v1::NetworkPolicy,
    "networking.v1.ServiceCIDR" => api::networking::v1::ServiceCIDR,
    "node.v1.RuntimeClass" => api::node::v1::RuntimeClass,
    "policy.v1.Eviction" => api::policy::v1::Eviction,
    "policy.v1.PodDisruptionBudget" => api::policy::v1::PodDisruptionBudget,
    "rbac.v1.ClusterRole" => api::rbac::v1::ClusterRole,
    "rbac.v1.ClusterRoleBinding" => api::rbac::v1::ClusterRoleBinding,
    "rbac.v1.Role" => api::rbac::v1::Role,
    "rbac.v1.RoleBinding" => api::rbac::v1::RoleBinding,
    "resource.v1.DeviceClass" => api::resource::v1::DeviceClass,
    "resource.v1.ResourceClaim" => api::resource::v1::ResourceClaim,
    "resource.v1.ResourceClaimTemplate" => api::resource::v1::ResourceClaimTemplate,
    "resource.v1.ResourceSlice" => api::resource::v1::ResourceSlice,
    "scheduling.v1.PriorityClass" => api::scheduling::v1::PriorityClass,
    "storage.v1.CSIDriver" => api::storage::v1::CSIDriver,
    "storage.v1.CSINode" => api::storage::v1::CSINode,
    "storage.v1.CSIStorageCapacity" => api::storage::v1::CSIStorageCapacity,
    "storage.v1.StorageClass" => api::storage::v1::StorageClass,
    "storage.v1.VolumeAttachment" => api::storage::v1::VolumeAttachment,
    "storage.v1.VolumeAttributesClass" => api::storage::v1::VolumeAttributesClass,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_types_and_fields_of_a_kind() {
        assert!(KINDS.is_sorted_by_key(|(name, _)| *name));
        let texts = Descriptions::of(["core.v1.Pod"].into_iter());
        assert!(texts.of_type("io.k8s.api.core.v1.PodSpec").contains("pod"));
        assert!(texts.of_field("io.k8s.api.core.v1.Container", "image").contains("image"));
        assert_eq!(texts.of_type("io.k8s.api.apps.v1.Deployment"), "");
    }
}
